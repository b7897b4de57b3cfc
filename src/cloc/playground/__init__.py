"""A web page over one or several checkpoints: regions by name, phrases by place, a folder by both; the same as an API.

    cloc playground --model CLOC=runs/demo/model --model CLIP=openai/clip-vit-base-patch16 --data photos/

    server.py       the address, the signals, what is printed
    opening.py      from settings.py to an application
    app.py          the pages and what belongs to running a service: health, metrics, the schema
    routes.py       the API: pictures, samples, naming, finding, searching, embedding
    guard.py        which requests are let in, and how much they may carry
    engine.py       a model that answers many requests at once, through the queues of batching.py
    pictures.py     what was uploaded, in memory
    collection.py   the data that can be picked and searched; index.py: the index of its regions

The page is in `static/` and `templates/`: no build step, nothing from another host.
"""
