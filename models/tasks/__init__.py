"""Six small trained networks, one for each kind of task that the examples of docs/ show.

`python -m models.tasks.train` trains them anew, in minutes on one core. What they learn is made by
`data.py`, from the digits of scikit-learn and from rules; nothing is downloaded.
"""
