// Y = X Wᵀ for many tokens and a W of compressed sparse rows, expanded tile by tile.
#import csr
#import tiles

const STEP: u32 = 16u;
const PITCH: u32 = TILE + 1u;

// Entries of this thread's row that came in earlier steps.
var<private> passed: u32;

fn load_w(first_row: u32, first_column: u32, thread: u32) {
    if thread >= TILE {
        return;
    }
    for (var column = 0u; column < STEP; column++) {
        w_tile[column * PITCH + thread] = 0.0;
    }
    if first_row + thread >= params.rows {
        return;
    }
    let entries = entries_of(first_row + thread);
    while passed < entries.count {
        let entry = entries.unit * 8u + passed;
        let column = entry_column(entry) - first_column;
        if column >= STEP {
            break;
        }
        w_tile[column * PITCH + thread] = entry_value(entry);
        passed++;
    }
}
