"""Lists of any length: asks page after page until there is enough."""

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

PAGE_SIZE = 200


def gather(call: Callable[[Request], Response], request: Request, items: str, limit: int) -> Response:
    """The first response with up to `limit` of its `items`, those of further pages among them."""
    response = _page(call, request, limit)
    found = getattr(response, items)
    while response.next_page_token and len(found) < limit:  # type: ignore[attr-defined]
        request.page_token = response.next_page_token  # type: ignore[attr-defined]
        following = _page(call, request, limit - len(found))
        found.extend(getattr(following, items))
        response.next_page_token = following.next_page_token  # type: ignore[attr-defined]
    return response


def _page(call: Callable[[Request], Response], request: Request, wanted: int) -> Response:
    request.page_size = min(wanted, PAGE_SIZE)  # type: ignore[attr-defined]
    return call(request)
