"""A report of one or several trainings: one HTML file, its images as PNG, its lists as CSV.

It needs matplotlib (``pip install 'dynloader[report]'``), so its parts are imported by themselves:
:func:`dynloader.report.page.write_report` writes one.
"""
