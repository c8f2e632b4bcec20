"""The page for the browser: charts and text in one file that needs no network."""
