"""Rows as token ids, and what training sees of them: examples, none longer than the context and its next token.

The end token is the last of every row, and never hidden from the loss: a model that does not learn it never stops.
Knows nothing of models or of files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.errors import FailedPrecondition
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason

Tokens = npt.NDArray[np.unsignedinteger[Any]]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """Rows one after another in `tokens`: row i ends before `ends[i]` and begins with `prompts[i]` tokens of prompt."""

    tokens: Tokens
    ends: Places
    prompts: npt.NDArray[np.uint32]
    end_id: int

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def begins(self) -> Places:
        """Where each row begins."""
        return np.concatenate((np.zeros(1, np.int64), self.ends[:-1]))


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Spans of `tokens`: example i is tokens[begins[i]:ends[i]], of which those from `firsts[i]` on are learnt.

    `are_rows` says that each is a whole answer with what is left of its prompt, not a piece of a text.
    """

    tokens: Tokens
    begins: Places
    ends: Places
    firsts: Places
    end_id: int
    are_rows: bool
    dropped: int = 0
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.ends)

    @staticmethod
    def of(rows: TokenRows, data: pb.DataSpec, context_length: int) -> Examples:
        """What of the rows fits a context. FailedPrecondition where nothing does, or a row lacks its end.

        A row has one token more than the context: its last is only predicted.
        """
        _check_ended(rows)
        found = _pieces(rows, context_length) if data.text_column else _answers(rows, data, context_length)
        if not len(found):
            raise FailedPrecondition(
                Reason.REASON_CORPUS_UNUSABLE,
                f"none of {len(rows)} rows fits a context of {context_length} tokens; set architecture.context_length "
                f"to {int(np.diff(rows.ends, prepend=0).max()) - 1}",
            )
        return found

    @property
    def lengths(self) -> Places:
        """Places that each takes in a sequence: one less than it has tokens."""
        return self.ends - self.begins - 1

    @property
    def learnt(self) -> Places:
        """The ids that bear loss, in order."""
        counts = self.ends - self.firsts
        steps = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        found: Places = self.tokens[np.repeat(self.firsts, counts) + steps].astype(np.int64)
        return found


def _answers(rows: TokenRows, data: pb.DataSpec, context_length: int) -> Examples:
    begins, prompts = rows.begins, rows.prompts.astype(np.int64)
    excess = np.maximum(0, rows.ends - begins - 1 - context_length)
    is_cut = excess > 0
    # The first token of the answer is predicted from at least one of the prompt.
    may_go = np.zeros_like(prompts) if data.long_rows == pb.LONG_ROW_POLICY_DROP else np.maximum(0, prompts - 1)
    kept = excess <= may_go
    from_prompt = data.loss_on == pb.LOSS_TARGET_ALL
    firsts = begins + excess + 1 if from_prompt else np.maximum(begins + prompts, begins + excess + 1)
    return Examples(
        tokens=rows.tokens,
        begins=(begins + excess)[kept],
        ends=np.asarray(rows.ends)[kept],
        firsts=firsts[kept],
        end_id=rows.end_id,
        are_rows=True,
        dropped=int((~kept).sum()),
        truncated=int((kept & is_cut).sum()),
    )


def _pieces(rows: TokenRows, context_length: int) -> Examples:
    """Whole texts, cut where they are longer: a piece begins with the token that the one before it ended with."""
    begins = rows.begins
    counts = -(-(rows.ends - begins - 1) // context_length)
    nth = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    starts = np.repeat(begins, counts) + nth * context_length
    ends = np.minimum(starts + context_length + 1, np.repeat(rows.ends, counts))
    return Examples(tokens=rows.tokens, begins=starts, ends=ends, firsts=starts + 1, end_id=rows.end_id, are_rows=False)


def _check_ended(rows: TokenRows) -> None:
    """FailedPrecondition unless the last token of each row is the end token, and no part of its prompt."""
    wrong = np.flatnonzero((rows.tokens[rows.ends - 1] != rows.end_id) | (rows.begins + rows.prompts >= rows.ends))
    if len(wrong):
        raise FailedPrecondition(
            Reason.REASON_CORPUS_UNUSABLE,
            f"{len(wrong)} rows do not end with the token that ends an answer; the first is {wrong[0]}",
        )
