"""The viewer: a page in the browser that shows a generator's objects from any camera.

    view_settings.py  what one client wants to see
    drawing.py        settings to pictures, with a cache of tri-planes; knows no browser
    pictures.py       depth, normals, opacity, differences, and the picture on the browser's canvas
    scheduler.py      who is drawn next: the newest settings of each client, coarse first, then sharp
    model_source.py   the model of a URI or a run, and its newer checkpoints
    dataset_views.py  cameras and images of a data set
    exports.py        screenshots, camera paths, videos and meshes, as files to download
    server.py         viser's server: on loopback, at a free port
    page.py           the controls and the scene of one client

Only `server.py` and `page.py` import viser.
"""
