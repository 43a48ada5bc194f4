"""Packs scikit-learn's copy of the UCI handwritten digits into digits.bin; README.md says how and what.

    pip download --no-deps scikit-learn && python make_digits.py scikit_learn-*.whl
"""

import csv
import gzip
import pathlib
import sys
import zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    text = gzip.decompress(wheel.read("sklearn/datasets/data/digits.csv.gz")).decode()
rows = [[int(float(value)) for value in row] for row in csv.reader(text.splitlines())]

assert len(rows) == 1797
for row in rows:
    assert len(row) == 65 and max(row[:64]) <= 16 and min(row) >= 0 and row[64] <= 9

pathlib.Path(__file__).with_name("digits.bin").write_bytes(b"".join(map(bytes, rows)))
