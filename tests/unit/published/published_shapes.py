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
