"""`polyserve bench compare`: the same work through several engines, in turn, beside what the machine allows.

plan.py     what is asked: engines, precision, runs
models.py   the model by name, and the folder of what is made from it
forms.py    which form of the model, at which precision, each engine reads, and which pairs are refused
export.py   the forms that are made: a bf16 folder and a 16-bit GGUF file
cost.py     what a step must read, and what a prompt token must multiply
driver.py   the child's main program; engines/ has one file an engine, which it loads by path
process.py  the parent's side of a child: start, ask, pause, stop
run.py      rounds, in which the engines take turns
figures.py  medians, ratios and percents from the seconds of the runs
report.py   the JSON document, and lines for a terminal
table.py    Markdown tables from saved documents
"""
