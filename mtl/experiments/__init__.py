"""One file or folder per table or figure of the papers: its runs, tables, figures and verdicts."""
