"""Runs `tour.py` and writes it with what it printed as `tour.ipynb`: pip install jupytext nbclient ipykernel."""

import base64
import io
import json
from pathlib import Path

import jupytext
import PIL.Image
from nbclient import NotebookClient


FOLDER = Path(__file__).parent


def printed(outputs: list) -> list:
    """The outputs of a cell without warnings; what it printed in one piece, its picture in 64 colours."""
    text = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    kept = [{"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}] if text else []
    for output in outputs:
        if output["output_type"] == "execute_result":
            small = io.BytesIO()
            picture = PIL.Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"])))
            picture.convert("RGB").quantize(64).save(small, "png", optimize=True)
            data = {"image/png": base64.b64encode(small.getvalue()).decode()}
            kept.append({"output_type": "display_data", "data": data, "metadata": {}})
    return kept


def tidy(notebook: dict) -> dict:
    """A notebook without what differs from run to run for no reason."""
    cells = []
    for number, cell in enumerate(notebook["cells"]):
        tidied = {"cell_type": cell["cell_type"], "id": f"cell-{number}", "metadata": {}}
        tidied["source"] = cell["source"].splitlines(keepends=True)
        if cell["cell_type"] == "code":
            tidied |= {"execution_count": cell["execution_count"], "outputs": printed(cell["outputs"])}
        cells.append(tidied)
    return {"cells": cells, "metadata": {"language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5}


def main() -> None:
    notebook = jupytext.read(FOLDER / "tour.py")
    NotebookClient(notebook, timeout=1_800, kernel_name="python3").execute()
    (FOLDER / "tour.ipynb").write_text(json.dumps(tidy(notebook), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
