"""What a learner sees: panels with buttons, the live flow map, predictions, quizzes, exercise checks.

A notebook calls `begin("04")` and gets its chapter; everything on the page comes from that object. Each widget can also
stand alone: `RunPanel("hello-world")`, `ContainerCard("box")`, `Steps("run greeter:1.0")`, `Doctor()`. Widgets know
three things of the program: `minirt.client.Client`, which does, `minirt.trace`, which tells what was done, and the
store's folder, which is an OCI image layout. What they know of the machine itself is in /proc.
"""

from minirt.notebook.card import ContainerCard
from minirt.notebook.chapter import Chapter, begin
from minirt.notebook.doctor import Doctor
from minirt.notebook.explorer import ImageExplorer
from minirt.notebook.overview import progress
from minirt.notebook.panel import RunPanel
from minirt.notebook.place import Place
from minirt.notebook.stack import LayerStack
from minirt.notebook.steps import Steps

__all__ = [
    "Chapter",
    "ContainerCard",
    "Doctor",
    "ImageExplorer",
    "LayerStack",
    "Place",
    "RunPanel",
    "Steps",
    "begin",
    "progress",
]
