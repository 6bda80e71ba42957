package litestream_test

import (
	"encoding/binary"
	"os"
	"slices"
	"testing"

	"example.com/litestream"
)

// failCommit leaves behind the last commit what a writer leaves that dies, or
// whose sync fails, after it wrote its commit frame and before it published it
// in the -shm file: a transaction that SQLite does not know of, and that the
// next writer overwrites. It has a frame for each of the pages, given by number,
// and commits a database of size pages. Everything must have been captured.
func failCommit(t testing.TB, db *litestream.DB, size uint32, pages ...uint32) {
	t.Helper()
	wal, end := readFile(t, db.WALPath()), db.Pos().Offset
	pageSize := int(binary.BigEndian.Uint32(wal[8:]))
	last := wal[end-int64(litestream.WALFrameHeaderSize+pageSize) : end]
	var bo binary.ByteOrder = binary.LittleEndian
	if binary.BigEndian.Uint32(wal)&1 == 1 {
		bo = binary.BigEndian
	}
	s0, s1 := binary.BigEndian.Uint32(last[16:]), binary.BigEndian.Uint32(last[20:])
	var out []byte
	for i, pgno := range pages {
		frame := make([]byte, litestream.WALFrameHeaderSize+pageSize)
		binary.BigEndian.PutUint32(frame, pgno)
		if i == len(pages)-1 {
			binary.BigEndian.PutUint32(frame[4:], size)
		}
		copy(frame[8:16], wal[16:24])
		for j := range frame[litestream.WALFrameHeaderSize:] {
			frame[litestream.WALFrameHeaderSize+j] = byte(i + j)
		}
		s0, s1 = litestream.Checksum(bo, s0, s1, frame[:8])
		s0, s1 = litestream.Checksum(bo, s0, s1, frame[litestream.WALFrameHeaderSize:])
		binary.BigEndian.PutUint32(frame[16:], s0)
		binary.BigEndian.PutUint32(frame[20:], s1)
		out = append(out, frame...)
	}
	f, err := os.OpenFile(db.WALPath(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(out, end); err != nil {
		t.Fatal(err)
	}
}

// failInsert is a failed commit of n pages behind the end of the database.
func failInsert(t testing.TB, fx *fixture, n int) {
	t.Helper()
	size := pageCount(t, fx)
	var pages []uint32
	for range n {
		size++
		pages = append(pages, size)
	}
	failCommit(t, fx.db, size, pages...)
}

// A shorter transaction takes the place of one that was captured but never
// published: the last frame that was captured is still there.
func TestPitfall_CommitOverAFailedOneIsCaptured(t *testing.T) {
	for _, tt := range []struct {
		name   string
		pages  int // that failed
		blob   int // bytes of the row that is committed instead
		reopen bool
	}{
		{"small", 10, 100, false},
		{"beyond the first chunk", 40, 80 << 10, false},
		{"beyond a large chunk", 700, 1500 << 10, false},
		{"opened again", 10, 100, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fx := newFixture(t, manually)
			fx.db.StopMonitor()
			fx.insertBlob(t, 100)
			mustSync(t, fx.db)
			failInsert(t, fx, tt.pages)
			mustSync(t, fx.db)
			if tt.reopen {
				fx.reopen(t, manually)
				fx.db.StopMonitor()
			}
			fx.insertBlob(t, tt.blob)
			mustSync(t, fx.db)
			if n := countRows(t, mustRestore(t, fx.client)); n != 3 {
				t.Errorf("restored %d rows, want 3", n)
			}
			mustEqualRestore(t, fx.db, fx.client)
		})
	}
}

// A transaction that was captured but never published stays as the end of its
// WAL index if the WAL restarts before anybody writes over it.
func TestPitfall_FailedCommitIsNotTheEndOfAnIndex(t *testing.T) {
	for _, tt := range []struct {
		name       string
		fail       func(t *testing.T, fx *fixture)
		checkpoint func(t *testing.T, fx *fixture)
		generation bool // a new one is due
	}{
		{"committed", failNothing, checkpointBy(litestream.CheckpointModePassive), false},
		{"passive", failUpdate, checkpointBy(litestream.CheckpointModePassive), true},
		{"full", failUpdate, checkpointBy(litestream.CheckpointModeFull), true},
		{"restart", failUpdate, checkpointBy(litestream.CheckpointModeRestart), true},
		{"truncate", failUpdate, checkpointBy(litestream.CheckpointModeTruncate), true},
		{"committed, host's checkpoint", failNothing, checkpointByHost, false},
		{"host's checkpoint", failUpdate, checkpointByHost, true},
		{"large, host's checkpoint", failLargeUpdate, checkpointByHost, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fx := newFixture(t, manually)
			fx.db.StopMonitor()
			mustExec(t, fx.host, `CREATE TABLE u (x)`)
			mustExec(t, fx.host, `INSERT INTO u VALUES (1)`)
			mustSync(t, fx.db)
			before := fx.db.Pos()
			tt.fail(t, fx)
			mustSync(t, fx.db)
			tt.checkpoint(t, fx)
			mustExec(t, fx.host, `INSERT INTO u VALUES (1)`) // restarts the WAL
			mustSync(t, fx.db)
			pos := fx.db.Pos()
			if pos.Generation == before.Generation && pos.Index != before.Index+1 {
				t.Errorf("position is %s, was %s: the test did not make the wal restart", pos, before)
			}
			if pos.Generation != before.Generation != tt.generation {
				t.Errorf("position is %s, was %s; new generation wanted: %v", pos, before, tt.generation)
			}
			mustEqualRestore(t, fx.db, fx.client)
		})
	}
}

func failNothing(*testing.T, *fixture) {}

// failUpdate is a failed commit of a page that exists: what comes after it does
// not cut it off.
func failUpdate(t *testing.T, fx *fixture) {
	t.Helper()
	failCommit(t, fx.db, pageCount(t, fx), 2)
}

func failLargeUpdate(t *testing.T, fx *fixture) {
	t.Helper()
	failCommit(t, fx.db, pageCount(t, fx), slices.Repeat([]uint32{2}, 700)...)
}

func pageCount(t testing.TB, fx *fixture) (n uint32) {
	t.Helper()
	if err := fx.host.QueryRow(`PRAGMA page_count`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func checkpointBy(mode string) func(t *testing.T, fx *fixture) {
	return func(t *testing.T, fx *fixture) {
		t.Helper()
		if err := fx.db.Checkpoint(ctx, mode); err != nil {
			t.Fatal(err)
		}
	}
}

// checkpointByHost lets a checkpoint of the host's complete, and the pin move
// to its end: there is nothing left for a checkpoint of the library's to count.
func checkpointByHost(t *testing.T, fx *fixture) {
	t.Helper()
	roll := func() {
		if err := fx.db.RollPin(ctx); err != nil {
			t.Fatal(err)
		}
	}
	roll()
	mustExec(t, fx.host, `PRAGMA wal_checkpoint(PASSIVE)`)
	roll()
}
