"""What may stand in a file that a kill, a full disk or a user has spoilt."""

DAMAGES = (
    b"",
    b'{"uid": "u", "num',
    b"\xff\xfe{}",
    b"\0" * 64,
    b"[" * 5000,
    b"[]",
    b"{}",
    b'{"fingerprint": 3, "text": [1]}',
    b"1" * 6000,
)
