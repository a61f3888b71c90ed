"""One engine's check: check.py HERE ENGINE LAKE, where LAKE has the folders `corpus` and `output` (and `spliced`, if it is there)."""
import importlib.util, os, runpy, sys, time

here, engine = sys.argv[1], sys.argv[2]
os.chdir(sys.argv[3])
sys.path.insert(0, here)
started = time.time()
import lake

names = {name: getattr(lake, name) for name in dir(lake) if not name.startswith("__")}
names["spliced"] = os.path.isdir("spliced")
for file in sorted(os.listdir(here)):
    name = file.removesuffix(".py")
    if name in (f"recipe_{engine}", "recipe_pyarrow"):
        spec = importlib.util.spec_from_file_location(name, os.path.join(here, file))
        names[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(names[name])
runpy.run_path(os.path.join(here, f"check_{engine}.py"), init_globals=names)
print(f"{engine}: {time.time() - started:.1f} s, spliced shards {'read' if names['spliced'] else 'not there'}")
