"""Small files in the published shapes, with content of our own."""

import json
from pathlib import Path
from typing import Any


def write_list(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write records as the published files do: one JSON list."""
    path.write_text(json.dumps(records))
    return path


def counterfact_record(number: int, subject: str | None = None, **changed: Any) -> dict[str, Any]:
    """Return a record with every published field."""
    subject = subject or f"Harbour {number:02}"
    rewrite = {
        "prompt": "{} lies on the river",
        "relation_id": "P206",
        "target_new": {"str": "Lomond", "id": "Q1"},
        "target_true": {"str": f"Brook {number}", "id": f"Q{number + 10}"},
        "subject": subject,
    }
    return {
        "case_id": number,
        "pararel_idx": 7,
        "requested_rewrite": rewrite | changed,
        "paraphrase_prompts": [
            f"It rained. {subject} stands beside",
            f"The waters near {subject} are those of",
        ],
        "neighborhood_prompts": [f"Mill {number} lies on the river", f"Ferry {number} crosses"],
        "attribute_prompts": ["Quay lies on the river"],
        "generation_prompts": [f"{subject} is known for", f"{subject} trades in"],
    }


def zsre_record(number: int, subject: str | None = None, **changed: Any) -> dict[str, Any]:
    """Return a record with every published field."""
    subject = subject or f"Captain {number:02}"
    return {
        "subject": subject,
        "src": f"Which ship did {subject} sail?",
        "pred": "Gull",
        "rephrase": f"What was the name of {subject}'s ship?",
        "alt": "Heron",
        "answers": [f"Tern {number}", "Puffin"],
        "loc": f"nq question: who painted the harbour {number}",
        "loc_ans": f"Painter {number}",
        "cond": "Gull >> Heron || Which ship?",
    } | changed


def question_record(number: int, **changed: Any) -> dict[str, Any]:
    """Return a row of SERAC's questions with the published fields."""
    return {
        "id": number,
        "input": f"Which ship did Captain {number:03} sail?",
        "prediction": "Gull",
        "alternatives": [f"Heron {number}", f"Egret {number}"],
        "filtered_rephrases": [
            f"What was Captain {number:03}'s ship?",
            f"Captain {number:03} sailed on what ship?",
        ],
        "output": [{"answer": f"Tern {number}", "provenance": []}, {"answer": "Puffin"}],
    } | changed


def claim_record(number: int, label: str = "SUPPORTS", **changed: Any) -> dict[str, Any]:
    """Return a row of VitaminC with the published fields."""
    return {
        "unique_id": f"{number}_1",
        "case_id": number,
        "evidence": f"The pier of harbour {number:03} was built in the year of the great storm .",
        "claim": f"Harbour {number:03} {label.lower()} a pier.",
        "label": label,
        "page": f"Harbour {number:03}",
        "revision_type": "real",
    } | changed


def topic_record(number: int, **changed: Any) -> dict[str, Any]:
    """Return a topic with opinions, as ConvSent has it."""
    return {
        "ent": f"Ferry {number:03}",
        "pos": [f"I love ferry {number}.", "It is a joy.", "So fast!"],
        "neg": [f"I loathe ferry {number}.", "It rolls."],
    } | changed


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
