"""The paper's ablation at this scale: its rows trained, evaluated together, and set beside its figures (`cloc ablate`).

rows       what is trained: one entry a row
paper      the paper's figures
labels     the label tables that rows are trained with
runner     trains and evaluates, and goes on where it was stopped
compare    differences, their noise, and whether they agree with the paper's
report     ablation.json, ablation.md and the table on the terminal
"""
