"""A report that compares training runs: one HTML file, plus figures as PNG and lists as CSV.

Requires matplotlib (``pip install 'dynloader[report]'``), so ``import dynloader`` does not import
it. Call :func:`dynloader.report.page.write_report`.
"""
