import logging

from octavo.serving.telemetry import TextFormatter


def test_a_line_for_people_is_one_line_whatever_callers_put_into_it() -> None:
    path = "/v1/a\n12:00:00 registry  deleted everything\x1b[31m\u2028ü"
    record = logging.LogRecord("octavo.gateway", logging.INFO, __file__, 1, "%s %s", ("GET", path), None)
    record.request_id = "x\ry"
    line = TextFormatter().format(record)
    assert line.splitlines() == [line]
    assert "/v1/a\\n12:00:00" in line
    assert "\\x1b[31m\\u2028ü" in line
    assert line.endswith("request_id=x\\ry")
