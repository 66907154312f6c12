"""Reports for people and for CI: verdicts, sweeps and training curves as HTML, JUnit, Markdown."""
