"""Dates as day numbers that only mean something within one subject."""

import hashlib
import hmac
from datetime import date as calendar

SHIFT_DAYS = 36_525
"""A century: what the keyed offset of a subject may move its days by."""


def day_number(key: bytes, subject: str, date: str | None) -> int | None:
    """Turn a calendar date into a number of days with a keyed offset of the subject's own.

    Differences between days of one subject survive; the date itself cannot be
    found without the key.

    Args:
        key: The store's secret.
        subject: The subject's name, before hashing.
        date: YYYYMMDD, or None.

    Returns:
        The day, or None where there is no valid date.
    """
    text = (date or "").strip()
    if len(text) != 8 or not text.isdigit():
        return None
    try:
        day = calendar(int(text[:4]), int(text[4:6]), int(text[6:])).toordinal()
    except ValueError:
        return None
    secret = hmac.new(key, b"days|" + subject.encode(errors="surrogatepass"), hashlib.sha256).digest()
    return day - int.from_bytes(secret[:8], "big") % SHIFT_DAYS
