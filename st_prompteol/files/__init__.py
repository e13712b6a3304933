"""Reads rows of text, CSV, TSV, JSON and Parquet files, whole or a span; the only reader of rows in this package.

The same rules hold wherever rows are read (files are UTF-8, a byte order mark is skipped):

- `.txt` and every other name: a line is a row.
- `.tsv`: a line is a row, a tab separates cells, and quotation marks are part of the text.
- `.csv`: a comma separates cells; a cell that begins with `"` ends with `"`, and may contain commas, line breaks, and
  `""` for a quotation mark. Parsed by Python's `csv.reader(strict=True)`.
- `.jsonl`: a line is an object, whose keys are the columns.
- `.json`: an array of objects, or of strings, which are sentences; JSON lines are also accepted.
- `.parquet`: the columns are the file's own.

Unambiguous content overrides the name: gzip and zstd are decompressed, Parquet and JSON are read as such under any
name. In CSV and TSV every row has as many cells as the first one. An empty line is skipped, except where a line is a
sentence or the only cell of a row: there it is an empty sentence.
"""

from st_prompteol.files.content import SUFFIXES as SUFFIXES
from st_prompteol.files.content import opened as opened
from st_prompteol.files.content import suffix_of as suffix_of
from st_prompteol.files.lines import LINE as LINE
from st_prompteol.files.lines import Bad as Bad
from st_prompteol.files.lines import Row as Row
from st_prompteol.files.lines import read_lines as read_lines
from st_prompteol.files.parquet import check_single as check_single
from st_prompteol.files.parquet import import_pyarrow as import_pyarrow
from st_prompteol.files.parquet import known as known
from st_prompteol.files.parquet import open_parquet as open_parquet
from st_prompteol.files.parquet import read_tables as read_tables
from st_prompteol.files.parquet import values_of as values_of
from st_prompteol.files.rows import Contents as Contents
from st_prompteol.files.rows import look_into as look_into
from st_prompteol.files.rows import read_rows as read_rows
from st_prompteol.files.rows import report as report
from st_prompteol.files.rows import report_kinds as report_kinds
from st_prompteol.files.separated import HeaderError as HeaderError
