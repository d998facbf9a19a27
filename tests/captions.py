"""Pairs of captions: of other words each, and of the same."""

DIFFERENT = [
    ("a 😀 face", "a 😡 face"),
    ("❤️", "🚗"),
    ("किताब", "कताब"),
    ("नदी", "नद"),
    ("เสือ", "เสื่อ"),
    ("كَتَبَ", "كُتُب"),
    ("東京", "京東"),
    ("a sign saying C++", "a sign saying C#"),
    ("a plus sign +", "a plus sign -"),
    ("5 > 3", "5 < 3"),
    ("?", "!"),
    ("50% off", "50 off"),
    ("temperature -5", "temperature 5"),
    ("red_square", "red square"),
    ("a 1.5 mile run", "a 15 mile run"),
]
ALIKE = [
    ("a dog", "an dog"),
    ("A Dog, on a mat.", "a dog on a mat"),
    ("two\u00a0dogs\n", "two dogs"),
    ("STRASSE", "straße"),
    ("café", "cafe\u0301"),
    ("\uff21\uff22", "ab"),
]
