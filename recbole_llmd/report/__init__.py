"""Reports: tables on the terminal, CSV and JSON records, and one self-contained HTML page with plots."""
