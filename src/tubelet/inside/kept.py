"""What was measured stays measured: results on disk by everything they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet.evaluate import features
from tubelet.files import write_json

VERSION = 1  # raise it when numbers change for the same inputs


@dataclass(frozen=True)
class Kept:
    """A folder of results, so that an interrupted analysis goes on and a further encoder costs only itself."""

    folder: Path

    def get(self, what: str, about: dict[str, Any], make: Callable[[], Any]) -> Any:
        """What ``make`` returns, a JSON value, or what it returned before for the same ``about``.

        what: a word for the file's name. about: everything that the value depends on, as JSON; how features are
        computed is added. A file that is damaged or of another version is made again. JSON as Python writes it: what is
        not a number stays NaN.
        """
        versions = {"version": VERSION, "features": features.VERSION}
        about = json.loads(json.dumps({**versions, "what": what, **about}, sort_keys=True))
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        file = self.folder / f"{what}-{key}.json"
        if file.is_file():
            try:
                saved = json.loads(file.read_text(encoding="utf-8"))
            except ValueError:  # neither JSON nor text
                saved = None
            if isinstance(saved, dict) and saved.get("about") == about and "found" in saved:
                return saved["found"]
        found = make()
        write_json(file, {"about": about, "found": found})
        return json.loads(json.dumps(found))
