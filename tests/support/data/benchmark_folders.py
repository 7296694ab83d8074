"""Writes folders with a few made-up rows in the official layouts of GLUE and CLUE."""

import json
from pathlib import Path

HEADERS = {
    "MNLI/train": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
    "sentence2_parse sentence1 sentence2 label1 gold_label",
    "MNLI/dev_matched": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
    "sentence2_parse sentence1 sentence2 label1 label2 label3 label4 label5 gold_label",
    "QQP/train": "id qid1 qid2 question1 question2 is_duplicate",
    "QNLI/train": "index question sentence label",
    "SST-2/train": "sentence label",
    "RTE/train": "index sentence1 sentence2 label",
    "MRPC/train": "Quality|#1 ID|#2 ID|#1 String|#2 String",
    "STS-B/train": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
    "WNLI/train": "index sentence1 sentence2 label",
}
"""Columns of GLUE's files by folder and file. CoLA's files have none."""

LABELS = {
    "MNLI": ("entailment", "neutral", "contradiction"),
    "QNLI": ("entailment", "not_entailment"),
    "RTE": ("entailment", "not_entailment"),
    "STS-B": ("0.000", "2.500", "5.000"),
}
"""Labels of GLUE's tasks; the others have 0 and 1."""

TASKS = {
    "mnli": "MNLI",
    "qqp": "QQP",
    "qnli": "QNLI",
    "sst2": "SST-2",
    "cola": "CoLA",
    "rte": "RTE",
    "mrpc": "MRPC",
    "stsb": "STS-B",
    "wnli": "WNLI",
}
"""Folders of GLUE's tasks, by the name of their config."""


def write_glue(folder: Path, rows: int = 6) -> None:
    """Writes GLUE with rows whose first text begins with a single quotation mark, as some of the official rows do."""
    for task in TASKS.values():
        files = {"train": "train", "dev": "train"}
        if task == "MNLI":
            files = {"train": "train", "dev_matched": "dev_matched", "dev_mismatched": "dev_matched"}
        (folder / task).mkdir(parents=True, exist_ok=True)
        for file, columns in files.items():
            (folder / task / f"{file}.tsv").write_text("".join(_lines(task, columns, rows)), encoding="utf-8")


def _lines(task: str, columns: str, rows: int) -> list[str]:
    labels = LABELS.get(task, ("0", "1"))
    header = HEADERS.get(f"{task}/{columns}", "")
    names = header.split("|") if "|" in header else header.split()
    lines = ["\t".join(names) + "\n"] if names else []
    for index in range(rows):
        label = labels[index % len(labels)]
        row = {
            name: label if name in ("label", "gold_label", "score", "is_duplicate", "Quality") else "x"
            for name in names
        }
        row |= {name: f'"Text {index} of {name}' for name in names if name.endswith(("1", "2")) and "sentence" in name}
        row |= {
            name: f'"Text {index} of {name}'
            for name in names
            if name.startswith(("question", "#")) and "ID" not in name
        }
        row |= {name: f'"Text {index}' for name in names if name == "sentence"}
        cells = list(row.values()) if names else ["gj04", label, "*" if label == "0" else "", f'"Text {index}']
        lines.append("\t".join(cells) + "\n")
    return lines


CLUE_ROWS = {
    "tnews": {"label": "108", "label_desc": "news_edu", "sentence": "上课时学生手机响个不停", "keywords": "学生,手机"},
    "iflytek": {"label": "110", "label_des": "社区超市", "sentence": "朴朴快送超市创立于二零一六年"},
    "afqmc": {"sentence1": "花呗怎么还款", "sentence2": "花呗如何还款", "label": "1"},
    "cmnli": {"sentence1": "新的权利已经足够好了", "sentence2": "每个人都很喜欢", "label": "neutral"},
    "ocnli": {
        "level": "medium",
        "sentence1": "身上裹一件工厂发的棉大衣",
        "sentence2": "身上有衣服",
        "label": "entailment",
    },
    "csl": {"id": 1, "abst": "为解决传统均匀波束形成器的问题", "keyword": ["水声学", "波束形成"], "label": "1"},
    "cluewsc2020": {
        "target": {"span2_index": 7, "span1_index": 0, "span1_text": "小明", "span2_text": "他"},
        "idx": 0,
        "label": "true",
        "text": "小明告诉老师，他病了",
    },
}
"""A row of each task of CLUE by its folder."""

OTHER_LABELS = {"tnews": "104", "iflytek": "3", "afqmc": "0", "csl": "0", "cluewsc2020": "false"}


def write_clue(folder: Path, rows: int = 6) -> None:
    """Writes CLUE; each second row has another label, and in the files of inference one row has none."""
    for task, row in CLUE_ROWS.items():
        (folder / task).mkdir(parents=True, exist_ok=True)
        for file in ("train", "dev"):
            made = []
            for index in range(rows):
                label = OTHER_LABELS.get(task, "contradiction") if index % 2 else row["label"]
                made.append(row | {"label": "-" if task.endswith("nli") and index == rows - 1 else label})
            text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in made)
            (folder / task / f"{file}.json").write_text(text, encoding="utf-8")
