"""Reading rows of any format, for everything that reads rows: text, CSV, TSV, JSON and Parquet, whole or a span.

The rules, the same wherever rows are read (files are UTF-8, a byte order mark is skipped):

- `.txt` and every other name: a line is a row.
- `.tsv`: a line is a row, a tab separates cells, and quotation marks are part of the text.
- `.csv`: a comma separates cells; a cell that begins with `"` ends with `"`, may hold commas and line breaks between,
  and `""` for a quotation mark. Python's own `csv.reader(strict=True)` reads it.
- `.jsonl`: a line is an object, whose keys are the columns.
- `.json`: an array of objects, or of strings, which are sentences; JSON lines are read as such.
- `.parquet`: the columns are the file's own.

The content decides where it is unmistakable: gzip and zstd are unpacked, Parquet and JSON are read as such, whatever
the name is. In CSV and TSV every row has as many cells as the first one. An empty line is skipped, except where a line
is a sentence or the only cell of a row: there it is an empty sentence.
"""

from st_prompteol.tables.content import SUFFIXES, opened, suffix_of
from st_prompteol.tables.lines import LINE, Bad, Row, read_lines
from st_prompteol.tables.parquet import check_single, import_pyarrow, known, open_parquet, read_tables, values_of
from st_prompteol.tables.rows import Contents, look_into, read_rows, report, report_kinds
from st_prompteol.tables.separated import HeaderError

__all__ = [
    "LINE",
    "SUFFIXES",
    "Bad",
    "Contents",
    "HeaderError",
    "Row",
    "check_single",
    "import_pyarrow",
    "known",
    "look_into",
    "open_parquet",
    "opened",
    "read_lines",
    "read_rows",
    "read_tables",
    "report",
    "report_kinds",
    "suffix_of",
    "values_of",
]
