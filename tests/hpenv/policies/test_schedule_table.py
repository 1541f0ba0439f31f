"""A table of schedules, read at every decision."""

import numpy as np
import pytest

from hpenv.policies import ScheduleTable


@pytest.mark.parametrize(
    ("num_steps", "interval"),
    [(561, 50), (600, 50), (49, 1), (561, 7), (10, 10), (100_000, 3), (999_983, 1000)],
)
def test_every_decision_reads_its_own_row_of_the_table(num_steps, interval):
    steps = np.arange(0, num_steps, interval)
    table = np.linspace(-1, 1, len(steps))[:, None]
    progress = (steps / num_steps).astype(np.float32)[:, None]
    assert np.array_equal(ScheduleTable(table).act(progress), table.astype(np.float32))


def test_the_table_holds_its_last_row_at_the_end_of_the_run():
    assert ScheduleTable([[0.1], [0.2]]).act(np.ones((1, 1))) == np.float32(0.2)


def test_the_table_reads_the_column_it_is_told_to():
    table = ScheduleTable([[0.1], [0.2]], progress_column=2)
    obs = np.array([[9.0, 9.0, 0.0], [9.0, 9.0, 0.5]])
    assert table.act(obs).tolist() == [[np.float32(0.1)], [np.float32(0.2)]]
    with pytest.raises(ValueError, match="columns"):
        table.act(np.zeros((1, 2)))


@pytest.mark.parametrize("positions", [[0.0, 1.0], [[1.5]], [[np.nan]], np.zeros((0, 2))])
def test_a_bad_table_is_refused(positions):
    with pytest.raises(ValueError, match="positions"):
        ScheduleTable(positions)
