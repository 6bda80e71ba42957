package litestream

import "testing"

// Every row of the table in which the WAL on disk is judged.
//
// PITFALLS rows 5, 6 and 31
func TestClassify(t *testing.T) {
	const none = ""
	header := newWALHeader(4096, 7, 100, false)
	next := newWALHeader(4096, 8, 200, false)
	skipped := newWALHeader(4096, 9, 200, false)
	other := newWALHeader(4096, 0xdeadbeef, 200, false)
	wraps, wrapped := newWALHeader(4096, 0xffffffff, 1, false), newWALHeader(4096, 0, 2, false)
	last := [WALFrameHeaderSize]byte{1, 2, 3}
	pos := Pos{"0123456789abcdef", 3, 32 + 4120}
	cur := walCursor{header: header, offset: pos.Offset, last: last}
	fresh := walCursor{header: header, offset: WALHeaderSize}
	size := pos.Offset
	for _, test := range []struct {
		name   string
		pos    Pos
		cur    walCursor
		view   walView
		proof  continuity
		want   walAction
		reason string
	}{
		{"no position", Pos{}, walCursor{}, walView{size, header, last, false}, pinned, walNewGeneration, "first start"},
		{"no position, no wal", Pos{}, walCursor{}, walView{}, pinned, walNewGeneration, "first start"},
		{"same", pos, cur, walView{size, header, last, false}, pinned, walContinue, none},
		{"same, at open", pos, cur, walView{size, header, last, false}, unproven, walContinue, none},
		{"grown", pos, cur, walView{size + 9999, header, last, false}, pinned, walContinue, none},
		{"same, header alone captured", pos, fresh, walView{32, header, [24]byte{}, false}, pinned, walContinue, none},
		{"shorter", pos, cur, walView{size - 1, header, [24]byte{}, false}, pinned, walNewGeneration, "wal truncated"},
		{"last frame differs", pos, cur, walView{size, header, [24]byte{9}, false}, pinned, walNewGeneration, "wal overwritten"},
		{"another transaction", pos, cur, walView{size, header, last, true}, pinned, walNewGeneration, "wal overwritten"},
		{"another transaction, restarted since", pos, cur, walView{size, next, last, true}, pinned, walNextIndex, none},
		{"last index goes on", Pos{pos.Generation, MaxIndex, size}, cur, walView{size, header, last, false}, pinned, walContinue, none},
		{"last index restarts", Pos{pos.Generation, MaxIndex, size}, cur, walView{size, next, last, false}, pinned, walNewGeneration, "last index reached"},
		{"restart", pos, cur, walView{size, next, last, false}, pinned, walNextIndex, none},
		{"restart, shorter", pos, cur, walView{32, next, [24]byte{}, false}, pinned, walNextIndex, none},
		{"restart, salt wraps", pos, walCursor{header: wraps, offset: size, last: last}, walView{size, wrapped, last, false}, pinned, walNextIndex, none},
		{"restart, unproven", pos, cur, walView{size, next, last, false}, unproven, walNewGeneration, "wal restarted elsewhere"},
		{"two restarts", pos, cur, walView{size, skipped, last, false}, pinned, walNewGeneration, "wal restarted elsewhere"},
		{"truncated elsewhere", pos, cur, walView{size, other, last, false}, pinned, walNewGeneration, "wal restarted elsewhere"},
		{"our truncate", pos, cur, walView{size, other, last, false}, truncated, walNextIndex, none},
		{"our truncate, not restarted", pos, cur, walView{size, header, last, false}, truncated, walContinue, none},
		{"no wal", pos, cur, walView{}, pinned, walNothing, none},
		{"empty after our truncate", pos, cur, walView{}, truncated, walNothing, none},
		{"torn header", pos, cur, walView{size: 31}, pinned, walNothing, none},
		{"no wal, unproven", pos, cur, walView{}, unproven, walNewGeneration, "wal is gone"},
		{"first wal of the generation", Pos{Generation: pos.Generation}, walCursor{}, walView{size, other, [24]byte{}, false}, pinned, walContinue, none},
		{"first wal, unproven", Pos{Generation: pos.Generation}, walCursor{}, walView{size, other, [24]byte{}, false}, unproven, walNewGeneration, "wal began unseen"},
	} {
		got, reason := classify(test.pos, test.cur, test.view, test.proof)
		if got != test.want || reason != test.reason {
			t.Errorf("%s: got %d %q, want %d %q", test.name, got, reason, test.want, test.reason)
		}
	}
}
