"""What a client may ask for, in bytes, pixels and numbers; what is beyond is refused with a line that says so."""

MIB = 1 << 20

IMAGE_BYTES = 20 * MIB  # of an uploaded file
IMAGE_PIXELS = 50_000_000  # of an uploaded picture, by its header
KEPT_SIDE = 2048  # pixels: a larger picture is reduced to it before it is kept
BODY_BYTES = MIB // 4  # of a JSON body
BODY_SECONDS = 30  # that a body may take to arrive
UPLOADS_BYTES = 256 * MIB  # of all files that arrive at the same time
REGIONS = 32  # of a request
LABELS = 100
TEXT = 300  # characters of a label or phrase
RESULTS = 60  # of a search
SAMPLES = 60  # of one list

PICTURES_BYTES = 512 * MIB  # pictures in memory
ENCODED_BYTES = 512 * MIB  # of what a model keeps of them
TEXTS_BYTES = 64 * MIB  # embeddings of texts, a model
QUEUE = 2048  # items that wait for a model, of one kind: the most regions of 64 requests
TEXTS_QUEUE = 6400  # the same of texts, which are small: the most labels of 64 requests
