"""What tests of several folders share: a real suite, once for each worker that asks for it."""

import threading
from collections.abc import Iterator

import pytest

from octavo.cli import ports, up
from octavo.cli.fleet import Fleet


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """All programs as processes on free ports, ready; they stop when the tests are over."""
    with Fleet(tmp_path_factory.mktemp("suite"), ports.free()) as fleet:
        up.wait_until_ready(fleet, threading.Event(), is_quiet=True)
        yield fleet
