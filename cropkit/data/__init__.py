"""What is on the disk? Photos, the catalog of them, its division, and batches of tensors."""

from cropkit.data.catalog import class_names, good_photos, passed_over, relabel, scan
from cropkit.data.copies import cache_size, clear_cache
from cropkit.data.corrections import add_correction, correct, read_corrections
from cropkit.data.datasets import CropDataset, make_loaders, transforms_for
from cropkit.data.files import DamagedCheckpoint
from cropkit.data.photos import BadPhoto, crop_around, crosshair_pixel, open_photo
from cropkit.data.splitting import check_split, drop_leaks, find_duplicates, prepare, split
