"""Several ways of pretraining beside each other: what they cost, what they reach, and what is noise.

`plan` says which runs there are and how long each is, `work` trains and evaluates one of them, `compare` does all
of them and writes the page, `studies` has the experiments that the papers are known for. A comparison lives in one
folder, and everything that the page shows is read back from there.
"""
