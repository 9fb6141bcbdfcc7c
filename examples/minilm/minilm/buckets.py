"""How texts of all lengths become rows of a few lengths: rows of one length can share a step, others cannot."""

import numpy as np

BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256)
CONTEXT = BUCKETS[-1]
"""A text has no more tokens than this; the model was trained so."""


def bucket_of(length):
    """The smallest bucket that holds so many tokens.

    Args:
        length: from 1 to `CONTEXT`.
    """
    return next(bucket for bucket in BUCKETS if length <= bucket)


def padded(ids):
    """A text's tokens with zeros up to its bucket, int32, and how many they were, int32.

    Args:
        ids: 1 to `CONTEXT` whole numbers.
    """
    tokens = np.zeros(bucket_of(len(ids)), np.int32)
    tokens[: len(ids)] = ids
    return tokens, np.int32(len(ids))
