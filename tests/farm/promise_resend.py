#!/usr/bin/env python3
"""After trouble with its disk the farm goes on within seconds: nobody waits for a resend that is a minute away."""
import sys
import time

from farm import FarmTest, main, wait_for

RESEND_S = 60 # after which a worker sends a picture again by itself


class Resend(FarmTest):
    def test_a_farm_whose_disk_takes_pictures_again_goes_on_at_once(self):
        self.farm.up("sim:ms=20", 2)
        out = self.farm.tmp / "out"
        objects = self.farm.dir / "objects"
        render = self.farm.start("render", self.farm.prompts(200), "-o", out)
        self.await_pictures(out, 20)
        folders = [(objects / f"{i:02x}", objects / f"{i:02x}-away") for i in range(256)]
        for folder, away in folders: # no picture has a place any more
            folder.rename(away)
        try:
            wait_for("the farm says that its disk takes no pictures",
                     lambda: any(b["reason"] == "disk" for b in self.farm.json("status")), 20)
        finally:
            for folder, away in folders:
                away.rename(folder)
        begun = time.monotonic()
        wait_for("the disk takes pictures", lambda: not any(b["reason"] == "disk" for b in self.farm.json("status")))
        took = time.monotonic() - begun
        print(f"  went on after {took:.1f} s", file=sys.stderr)
        self.assertLess(took, RESEND_S / 3)
        self.finish(render, timeout=RESEND_S / 2)
        self.check_folder(out, 200)


if __name__ == "__main__":
    sys.exit(main())
