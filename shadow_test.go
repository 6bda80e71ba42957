package litestream

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.com/litestream/internal/fsys"
	"example.com/litestream/internal/walcheck"
)

// stopped is a real database, its WAL and its meta directory, as a process
// leaves them that was killed: index 0 and 1, several segments each.
type stopped struct {
	dir  string
	pos  Pos
	capt *capturer // over the copy
}

func (s stopped) wal() string { return filepath.Join(s.dir, "db-wal") }

func (s stopped) segments(t testing.TB, index int) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(s.capt.shadow.meta.indexDir(s.pos.Generation, index), "*"+WALSegmentExt))
	if err != nil || len(names) < 4 {
		t.Fatalf("%d segments in index %d, %v", len(names), index, err)
	}
	return names
}

// stopDatabases returns a function that makes such copies.
func stopDatabases(t testing.TB) func(t testing.TB) stopped {
	t.Helper()
	src := t.TempDir()
	host := restoreOpenSQLite(t, filepath.Join(src, "db"))
	exec := func(q string) {
		t.Helper()
		if _, err := host.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	exec("PRAGMA journal_mode=WAL")
	exec("CREATE TABLE t(x)")
	db := NewDB(filepath.Join(src, "db"))
	db.Logger = nil
	if err := db.Open(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for range 5 {
			exec("INSERT INTO t VALUES (randomblob(9000))")
			if err := db.Sync(bg); err != nil {
				t.Fatal(err)
			}
		}
		if db.Pos().Index == 0 {
			if err := db.Checkpoint(bg, CheckpointModeRestart); err != nil {
				t.Fatal(err)
			}
		}
	}
	pos := db.Pos()
	if pos.Index != 1 {
		t.Fatalf("position %s, want index 1", pos)
	}
	wal, err := os.ReadFile(db.WALPath())
	if err != nil {
		t.Fatal(err)
	}
	image := readWithFile(t, db)
	meta := t.TempDir()
	if err := os.CopyFS(filepath.Join(meta, "m"), os.DirFS(db.MetaPath())); err != nil {
		t.Fatal(err)
	}
	closeAndCheck(t, db)
	return func(t testing.TB) stopped {
		t.Helper()
		s := stopped{dir: t.TempDir(), pos: pos}
		dir := metaDir(filepath.Join(s.dir, "db"+MetaDirSuffix))
		if err := errors.Join(os.CopyFS(string(dir), os.DirFS(filepath.Join(meta, "m"))),
			os.WriteFile(s.wal(), wal, 0o600),
			os.WriteFile(filepath.Join(s.dir, "db"), image, 0o600)); err != nil {
			t.Fatal(err)
		}
		s.capt = &capturer{fs: fsys.OS, walPath: s.wal(), shadow: newShadowWAL(fsys.OS, dir)}
		return s
	}
}

// closeAndCheck closes db and checks the invariants of its meta directory.
func closeAndCheck(t testing.TB, db *DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	if _, err := walcheck.MetaDir(db.MetaPath()); err != nil {
		t.Error(err)
	}
}

func readWithFile(t testing.TB, db *DB) (b []byte) {
	t.Helper()
	if err := db.WithFile(func(f *os.File) (err error) {
		b, err = io.ReadAll(io.NewSectionReader(f, 0, 1<<40))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return b
}

// edit changes a file.
func edit(t testing.TB, name string, fn func(b []byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, fn(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What was captured before a crash is continued if, and only if, it is proven
// to be what the WAL and the shadow WAL still hold. Anything else begins a new
// generation, and says why.
//
// PITFALLS rows 5, 8 and 12
func TestResumeProvesTheOldPosition(t *testing.T) {
	stop := stopDatabases(t)
	const frame = WALFrameHeaderSize + 4096
	restart := func(salt uint32) func(*testing.T, stopped) {
		return func(t *testing.T, s stopped) {
			edit(t, s.wal(), func(b []byte) []byte {
				old, err := parseWALHeader(b)
				if err != nil {
					t.Fatal(err)
				}
				cur := startWAL(newWALHeader(4096, old.salt1+salt, old.salt2^1, nativeBigEndian))
				head := append([]byte(nil), cur.header.raw[:]...)
				head = cur.appendFrame(head, walFrame{pgno: 1, commit: 9}, b[WALHeaderSize+WALFrameHeaderSize:WALHeaderSize+frame])
				return append(head, b[len(head):]...)
			})
		}
	}
	cut := func(segment int, keep func(n int) int) func(*testing.T, stopped) {
		return func(t *testing.T, s stopped) {
			names := s.segments(t, 1)
			edit(t, names[(segment+len(names))%len(names)], func(b []byte) []byte { return b[:keep(len(b))] })
		}
	}
	remove := func(segment int) func(*testing.T, stopped) {
		return func(t *testing.T, s stopped) {
			names := s.segments(t, 1)
			if err := os.Remove(names[(segment+len(names))%len(names)]); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, test := range []struct {
		name   string
		change func(*testing.T, stopped)
		reason string // of the new generation, or "" if the old one goes on
	}{
		{"nothing", func(*testing.T, stopped) {}, ""},
		{"torn tail", func(t *testing.T, s stopped) {
			edit(t, s.wal(), func(b []byte) []byte { return append(b, make([]byte, 100)...) })
		}, ""},
		{"one middle frame zeroed", func(t *testing.T, s stopped) {
			edit(t, s.wal(), func(b []byte) []byte { clear(b[WALHeaderSize+3*frame : WALHeaderSize+4*frame]); return b })
		}, "wal is not what was captured"},
		{"one bit of a page", func(t *testing.T, s stopped) {
			edit(t, s.wal(), func(b []byte) []byte { b[WALHeaderSize+frame+2000] ^= 1; return b })
		}, "wal is not what was captured"},
		{"wal shorter", func(t *testing.T, s stopped) {
			edit(t, s.wal(), func(b []byte) []byte { return b[:s.pos.Offset-frame] })
		}, "wal is not what was captured"},
		{"wal empty", func(t *testing.T, s stopped) {
			edit(t, s.wal(), func(b []byte) []byte { return nil })
		}, "wal restarted while closed"},
		{"wal header torn", func(t *testing.T, s stopped) {
			edit(t, s.wal(), func(b []byte) []byte { b[9]++; return b })
		}, "wal restarted while closed"},
		{"wal gone", func(t *testing.T, s stopped) {
			if err := os.Remove(s.wal()); err != nil {
				t.Fatal(err)
			}
		}, "wal is gone"},
		{"one restart", restart(1), "wal restarted while closed"},
		{"two restarts", restart(2), "wal restarted while closed"},
		{"newest shadow segment empty", cut(-1, func(n int) int { return 0 }), "shadow wal cannot be read"},
		{"newest shadow segment half", cut(-1, func(n int) int { return n / 2 }), "shadow wal cannot be read"},
		{"newest shadow segment without end mark", cut(-1, func(n int) int { return n - 4 }), "shadow wal cannot be read"},
		{"first shadow segment half", cut(0, func(n int) int { return n / 2 }), "shadow wal cannot be read"},
		{"middle shadow segment half", cut(2, func(n int) int { return n / 2 }), "shadow wal cannot be read"},
		{"middle shadow segment missing", remove(2), "shadow wal cannot be read"},
		{"newest shadow segment missing", remove(-1), ""}, // it is captured again
		{"first shadow segment missing", remove(0), "nothing was captured of the last generation"},
		{"middle shadow segment flipped", func(t *testing.T, s stopped) {
			edit(t, s.segments(t, 1)[2], func(b []byte) []byte { b[len(b)/2] ^= 0x40; return b })
		}, "shadow wal cannot be read"},
		{"older shadow index missing", func(t *testing.T, s stopped) {
			if err := os.RemoveAll(s.capt.shadow.meta.indexDir(s.pos.Generation, 0)); err != nil {
				t.Fatal(err)
			}
		}, ""},
		{"empty directory of the next index", func(t *testing.T, s stopped) {
			if err := os.Mkdir(s.capt.shadow.meta.indexDir(s.pos.Generation, 2), 0o700); err != nil {
				t.Fatal(err)
			}
		}, ""},
		{"unfinished segment", func(t *testing.T, s stopped) {
			if err := os.WriteFile(s.segments(t, 1)[0]+".x.tmp", []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, ""},
		{"marker torn", func(t *testing.T, s stopped) {
			edit(t, s.capt.shadow.meta.generationName(), func(b []byte) []byte { return b[:7] })
		}, "first start"},
		{"marker missing", func(t *testing.T, s stopped) {
			if err := os.Remove(s.capt.shadow.meta.generationName()); err != nil {
				t.Fatal(err)
			}
		}, "first start"},
		{"marker names another", func(t *testing.T, s stopped) {
			edit(t, s.capt.shadow.meta.generationName(), func(b []byte) []byte { return []byte("0000000000000001\n") })
		}, "nothing was captured of the last generation"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := stop(t)
			test.change(t, s)
			if err := s.capt.resume(); err != nil {
				t.Fatal(err)
			}
			got, err := s.capt.capture()
			if err != nil {
				t.Fatal(err)
			}
			if test.reason == "" {
				if got.generation != "" || s.capt.pos != s.pos {
					t.Fatalf("at %s (%q), want %s", s.capt.pos, got.generation, s.pos)
				}
			} else if !strings.HasPrefix(got.generation, test.reason) || s.capt.pos.Generation == s.pos.Generation {
				t.Fatalf("at %s: %q, want a new generation: %s", s.capt.pos, got.generation, test.reason)
			}
			// What can be read of the shadow WAL is the WAL.
			wal, err := os.ReadFile(s.wal())
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if s.capt.pos.Offset == 0 {
				return
			}
			segments, err := s.capt.shadow.segments(s.capt.pos.Generation, s.capt.pos.Index)
			if err != nil {
				t.Fatal(err)
			}
			zr := newFrameReader(joinSegments(s.capt.shadow.sources(s.capt.pos, segments)))
			b, err := io.ReadAll(zr)
			if err := errors.Join(err, zr.Close()); err != nil || int64(len(b)) != s.capt.pos.Offset || string(b) != string(wal[:len(b)]) {
				t.Errorf("the shadow WAL has %d bytes up to %s, or others than the WAL; error %v", len(b), s.capt.pos, err)
			}
		})
	}
}
