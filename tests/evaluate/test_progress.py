"""The line that says how much of an evaluation is done."""

from drope_jax.evaluate.progress import Progress


def test_progress_tells_the_share_and_the_time_left():
  now, said = [0.0], []
  progress = Progress([1, 3], said.append, lambda: now[0])
  progress.begin("first")
  now[0] = 10.0
  progress(1.0)
  progress.begin("second")
  assert said[-1].startswith("\r[######..................]  25%  second  about 30 s left")
  now[0] = 130.0
  progress(1 / 3)
  assert " 50%  second  about 2 min left" in said[-1]
  progress(1.0)
  assert progress.remaining() == ""
