"""Reports: verdicts, sweeps and training curves as HTML, JUnit, Markdown and Parquet."""
