# SHIM
import numpy as np
def recipe(config): return None
def crop(image,label,size,*,foreground=0.0,rng=None,outside=0.0):
    sh=image.shape[1:]; out=np.full((image.shape[0],*size),outside,image.dtype); lo=np.zeros((*label.shape[:label.ndim-len(size)],*size),label.dtype)
    src,dst=[],[]
    for n,s in zip(sh,size):
        if n>=s: a=rng.integers(n-s+1) if rng is not None else 0; src.append(slice(a,a+s)); dst.append(slice(0,s))
        else: b=(s-n)//2; src.append(slice(0,n)); dst.append(slice(b,b+n))
    out[(slice(None),*dst)]=image[(slice(None),*src)]; lo[(...,*dst)]=label[(...,*src)]
    return out,lo
def augment(image,label,rng,*,how,spacing=None,mirror=None): return image,label
