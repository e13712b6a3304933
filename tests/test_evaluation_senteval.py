"""Reading SentEval's files: every format on a few lines, every kind of damage, and the sizes of the real tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from st_prompteol.evaluation.senteval import STS_DEV_TASK, STS_TASKS, TRANSFER_TASKS, read_task, task_files


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def write_sts13(folder: Path) -> None:
    for subset in ("FNWN", "headlines", "OnWN"):
        write(folder, f"STS/STS13-en-test/STS.input.{subset}.txt", "a  cat\ta dog \nno\tscore\nüber\tunter\n")
        write(folder, f"STS/STS13-en-test/STS.gs.{subset}.txt", "4.5\n\n0\n")


def test_sts_subsets_leave_out_pairs_without_a_score(tmp_path):
    write_sts13(tmp_path)
    subsets = read_task(tmp_path, "STS13")
    assert list(subsets) == ["FNWN", "headlines", "OnWN"]
    assert subsets["OnWN"].columns == (["a cat", "über"], ["a dog", "unter"])
    assert subsets["OnWN"].labels.tolist() == [4.5, 0.0]


def test_stsb_has_columns_after_the_sentences(tmp_path):
    write(
        tmp_path, "STS/STSBenchmark/sts-dev.csv", "g\tf\ty\t1\t2.4\tA b.\tC d.\nx\tx\tx\tx\t5\tE\tF\tlicence\tmore\n"
    )
    dev = read_task(tmp_path, STS_DEV_TASK)["dev"]
    assert dev.columns == (["A b.", "E"], ["C d.", "F"])
    assert dev.labels.tolist() == [2.4, 5.0]


def test_sick_and_mrpc_have_a_header(tmp_path):
    write(tmp_path, "SICK/SICK_test_annotated.txt", "pair_ID\tA\tB\tscore\tjudgment\n6\tone\ttwo\t3.3\tNEUTRAL\n")
    write(tmp_path, "MRPC/msr_paraphrase_train.txt", "\ufeffQuality\t1\t2\tA\tB\n1\t9\t8\tone\ttwo\n0\t7\t6\t3\t4\n")
    write(tmp_path, "MRPC/msr_paraphrase_test.txt", "\ufeffQuality\t1\t2\tA\tB\n0\t9\t8\tfive\tsix\n")
    sick = read_task(tmp_path, "SICKRelatedness")["test"]
    assert (sick.columns, sick.labels.tolist()) == ((["one"], ["two"]), [3.3])
    mrpc = read_task(tmp_path, "MRPC")
    assert (mrpc["train"].columns, mrpc["train"].labels.tolist()) == ((["one", "3"], ["two", "4"]), [1, 0])
    assert (mrpc["test"].columns, mrpc["test"].labels.tolist()) == ((["five"], ["six"]), [0])


def test_binary_files_are_latin_1_with_nel_as_a_line_end_and_blank_lines_kept(tmp_path):
    write(tmp_path, "MR/rt-polarity.pos", "caf\xe9 good\none\x85two\n", "latin-1")
    write(tmp_path, "MR/rt-polarity.neg", "bad\n\n", "latin-1")
    train = read_task(tmp_path, "MR")["train"]
    assert train.columns == (["café good", "one", "two", "bad", ""],)
    assert train.labels.tolist() == [1, 1, 1, 0, 0]


def test_sst_and_trec(tmp_path):
    for split in ("train", "dev", "test"):
        write(tmp_path, f"SST/binary/sentiment-{split}", f"a {split} film .\t1\nnope \t0\n")
    write(tmp_path, "TREC/train_5500.label", "NUM:dist How far : is it ?\nABBR:exp What is NASA ?\n")
    write(tmp_path, "TREC/TREC_10.label", "LOC:city Where ?\n")
    sst = read_task(tmp_path, "SST2")
    assert list(sst) == ["train", "dev", "test"]
    assert (sst["dev"].columns, sst["dev"].labels.tolist()) == ((["a dev film .", "nope"],), [1, 0])
    trec = read_task(tmp_path, "TREC")
    assert trec["train"].columns == (["How far : is it ?", "What is NASA ?"],)
    assert (trec["train"].labels.tolist(), trec["test"].labels.tolist()) == ([5, 0], [4])


STS13, STSB, SICK = "STS/STS13-en-test/STS.", "STS/STSBenchmark/sts-test.csv", "SICK/SICK_test_annotated.txt"


@pytest.mark.parametrize(
    ("task", "name", "text", "message"),
    [
        ("STS13", STS13 + "input.OnWN.txt", "", "input.OnWN.txt is empty: unpack"),
        ("STS13", STS13 + "input.OnWN.txt", "a\tb\nalone\nc\td\n", r"line 2, has 1 tab-separated column\(s\) where 2"),
        ("STS13", STS13 + "input.OnWN.txt", "a\tb\n", "input.OnWN.txt has 1 lines and .*STS.gs.OnWN.txt has 3"),
        ("STS13", STS13 + "gs.OnWN.txt", "1\n2\nfour\n", "gs.OnWN.txt, line 3: the gold score 'four' is not a number"),
        ("STS13", STS13 + "gs.OnWN.txt", "1\nnan\n2\n", "gs.OnWN.txt, line 2: the gold score 'nan' is not a number"),
        ("STS13", STS13 + "gs.OnWN.txt", "\n\n\n", "gs.OnWN.txt has no labeled line"),
        ("STSBenchmark", STSB, "a\tb\tc\td\t1\tx\n", "sts-test.csv, line 1, has 6 .* 7 are"),
        ("STSBenchmark", STSB, "a\tb\tc\td\te\tx\ty\n", "line 1: the gold score 'e'"),
        ("SICKRelatedness", SICK, "h\tA\tB\ts\n1\tx\ty\t\n", "line 2: the gold score ''"),
        ("SICKRelatedness", SICK, "h\tA\tB\ts\n", "annotated.txt has no labeled line"),
        ("SST2", "SST/binary/sentiment-train", "fine\t2\n", "line 1: the label '2' is none of 0, 1"),
        ("TREC", "TREC/train_5500.label", "NUM:x A ?\nXYZ:x B ?\n", "line 2: the label 'XYZ' is none of ABBR"),
        ("TREC", "TREC/train_5500.label", "NUM:x How ?\nWhat\n", "line 2, is not of the form 'CLASS:fine question'"),
        ("MRPC", "MRPC/msr_paraphrase_train.txt", "h\t1\t2\tA\tB\nyes\t1\t2\tA\tB\n", "line 2: the label 'yes'"),
    ],
)
def test_damage_is_named(tmp_path, task, name, text, message):
    write_sts13(tmp_path)
    for path in ("SST/binary/sentiment-dev", "SST/binary/sentiment-test", "TREC/TREC_10.label"):
        write(tmp_path, path, "NUM:x never read\n")
    write(tmp_path, "MRPC/msr_paraphrase_test.txt", "never read\n")
    write(tmp_path, name, text)
    with pytest.raises(ValueError, match=message):
        read_task(tmp_path, task)


def test_missing_and_undecodable_files_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"sts-test.csv is missing, which the task STSBenchmark reads: data_dir"
    ):
        read_task(tmp_path, "STSBenchmark")
    write(tmp_path, "STS/STSBenchmark/sts-test.csv", "\xe9\t\n", "latin-1")
    with pytest.raises(ValueError, match=r"sts-test.csv is not utf-8 text \(byte 0\)"):
        read_task(tmp_path, "STSBenchmark")


@pytest.mark.shared
@pytest.mark.slow
def test_sizes_of_the_real_tasks(shared):
    folder = shared / "senteval"
    sizes = {
        task: [len(examples.labels) for examples in read_task(folder, task).values()]
        for task in (*STS_TASKS, STS_DEV_TASK, *TRANSFER_TASKS)
    }
    assert sizes == {
        "STS12": [750, 750, 459, 750, 399],
        "STS13": [189, 750, 561],
        "STS14": [450, 300, 750, 750, 750, 750],
        "STS15": [375, 750, 375, 750, 750],
        "STS16": [254, 249, 230, 244, 209],
        "STSBenchmark": [1379],
        "SICKRelatedness": [4927],
        "STSBenchmark-dev": [1500],
        "MR": [10678],  # 10,662 lines, some of which hold the line end NEL
        "CR": [3775],
        "SUBJ": [10015],  # 10,000 lines
        "MPQA": [10606],
        "SST2": [67349, 872, 1821],
        "TREC": [5452, 500],
        "MRPC": [4076, 1725],
    }
    assert [path.name for path in task_files(folder, "MR")] == ["rt-polarity.pos", "rt-polarity.neg"]
