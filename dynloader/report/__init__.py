"""A report that compares trainings: one HTML file, plus its figures as PNG and its lists as CSV.

Requires matplotlib (``pip install 'dynloader[report]'``), so ``import dynloader`` does not import
it. Call :func:`dynloader.report.page.write_report`.
"""
