"""One self-contained HTML page per run: no request leaves it, so it can be mailed, printed and kept."""
