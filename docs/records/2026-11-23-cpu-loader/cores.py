"""The table of cores, from a CSV: floors of the training step times 0.6, over clips a core second (median of the rounds)."""
import csv, sys, statistics as st
FLOORS = {(32, 224): 881.0, (8, 158): 6918.0}
rows = list(csv.DictReader(open(sys.argv[1])))
grids = sorted({(int(r["frames"]), int(r["crop_px"])) for r in rows})
def med(g, s, f): return st.median(f(r) for r in rows if (int(r["frames"]), int(r["crop_px"])) == g and r["source"] == s)
print("| grid | clips/s, 2 threads: files, packed | clips/s a core: files, packed | ratio | frames/s a core: files, packed | target clips/s | cores: files, packed |")
print("|---|---|---|---|---|---|---|")
for g in grids:
    target = 0.6 * FLOORS.get(g, 881.0 * 32 * 224**2 / (g[0] * g[1]**2))
    w = [med(g, s, lambda r: float(r["clips"]) / float(r["wall_s"])) for s in ("files", "packed")]
    c = [med(g, s, lambda r: float(r["clips"]) / float(r["cpu_s"])) for s in ("files", "packed")]
    f = [med(g, s, lambda r: float(r["clip_frames"]) / float(r["cpu_s"])) for s in ("files", "packed")]
    print(f"| {g[0]} x {g[1]} | {w[0]:.1f}, {w[1]:.1f} | {c[0]:.1f}, {c[1]:.1f} | {c[1]/c[0]:.1f} | {f[0]:.0f}, {f[1]:.0f} | {target:.0f} | {target/c[0]:.0f}, {target/c[1]:.1f} |")
def rounds(g, s, f): return [f(r) for r in rows if (int(r["frames"]), int(r["crop_px"])) == g and r["source"] == s]
wall = lambda r: float(r["clips"]) / float(r["wall_s"]); core = lambda r: float(r["clips"]) / float(r["cpu_s"])
for name, fn in (("clips/s of 2 threads", wall), ("clips/s a core", core)):
    a, b = rounds((8, 158), "packed", fn), rounds((32, 224), "files", fn)
    print(f"8 x 158 packed over 32 x 224 files, {name}: {st.median(a):.1f} / {st.median(b):.1f} = {st.median(a)/st.median(b):.1f} (worst packed round over best round of files: {min(a)/max(b):.1f})")
