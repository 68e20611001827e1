"""CrossGuard policies for the guide's core guidelines.

`pack` collects the rules of the modules named after the guidelines; `__main__` serves them to the engine. No module
here imports a cloud's SDK or the project's other parts: the pack runs on anyone's stack, and each preview waits for it.
"""
