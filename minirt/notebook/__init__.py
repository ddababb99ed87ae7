"""What a learner sees: panels with buttons, the live flow map, predictions, quizzes, exercise checks.

A notebook calls `begin("04")` and gets its chapter; everything on the page comes from that object. Widgets know two
things of the program: `minirt.client.Client`, which does, and `minirt.trace`, which tells what was done.
"""

from minirt.notebook.chapter import Chapter, begin

__all__ = ["Chapter", "begin"]
