"""Generated requests over everything that the OpenAPI documents say is served: `make fuzz`, and a short run in ring 3.

`values.py` makes values of schemas, mostly right, some wrong; `requests.py` makes requests of operations; `run.py`
sends them to a server and judges the answers. A seed names a run: the same seed sends the same requests.
"""
