"""Every command's words, flags and help, as values: one module a subject, `index.py` names them all."""
