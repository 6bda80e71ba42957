package litestream

import (
	"bytes"
	"context"
	"log"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// The restored file is byte for byte what SQLite's own checkpoint makes, for
// page sizes, growth, shrinking, empty indexes and any way the WAL restarted.
// PITFALLS rows 27 and 39.
func TestRestore_EqualsSQLiteCheckpoint(t *testing.T) {
	ctx := context.Background()
	for _, tt := range []struct {
		name     string
		pageSize int
		run      func(s *restoreSource)
	}{
		{"snapshot alone", 4096, func(s *restoreSource) {
			s.exec("PRAGMA wal_checkpoint(TRUNCATE)")
			s.snapshot()
		}},
		{"one index", 4096, func(s *restoreSource) {
			s.snapshot()
			s.insert(50, 1000)
		}},
		{"512", 512, restoreMixedHistory},
		{"4096", 4096, restoreMixedHistory},
		{"65536", 65536, restoreMixedHistory},
		{"vacuum", 4096, func(s *restoreSource) {
			s.snapshot()
			s.insert(500, 1000)
			s.restart("RESTART")
			s.exec("DELETE FROM t WHERE id > 10")
			s.exec("VACUUM")
		}},
		{"vacuum, then growth", 1024, func(s *restoreSource) {
			s.insert(500, 1000)
			s.snapshot()
			s.exec("DELETE FROM t WHERE id > 10")
			s.capture()
			s.exec("VACUUM")
			s.restart("TRUNCATE")
			s.insert(300, 900)
		}},
		{"snapshot larger than the result", 4096, func(s *restoreSource) {
			s.insert(2000, 1000)
			s.restart("TRUNCATE")
			s.insert(1, 10)
			s.snapshot()
			s.exec("DELETE FROM t")
			s.exec("VACUUM")
		}},
		{"many segments", 512, func(s *restoreSource) {
			s.snapshot()
			for i := range 300 {
				s.insert(1, 100)
				s.exec("UPDATE t SET v = randomblob(50) WHERE id = ?", i/2)
				s.capture()
			}
		}},
		{"snapshot in the middle", 4096, func(s *restoreSource) {
			s.snapshot()
			s.insert(100, 1000)
			s.restart("RESTART")
			s.insert(100, 1000)
			s.backfill() // pages of this index are in the file
			s.insert(10, 1000)
			s.snapshot()
			s.exec("UPDATE t SET v = randomblob(900)")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newRestoreSource(t, tt.pageSize)
			tt.run(s)
			s.capture()
			want := s.want()
			restoreWant(t, want, func(path string) error {
				pos, err := RestoreLatest(ctx, s.client, path, restoreQuiet())
				if err == nil && pos != s.pos {
					t.Errorf("restored to %v, want %v", pos, s.pos)
				}
				return err
			})
			if s.client.open != 0 {
				t.Errorf("%d readers left open", s.client.open)
			}
			if s.client.most > DefaultRestoreParallelism {
				t.Errorf("%d readers open at a time, want at most %d", s.client.most, DefaultRestoreParallelism)
			}
			// One at a time, and through scratch files.
			restoreWant(t, want, func(path string) error {
				opt := restoreQuiet()
				opt.Parallelism = 1
				opt.IntegrityCheck = IntegrityCheckFull
				r := newRestorer(s.client, path, opt)
				r.memory = 0
				_, err := r.run(ctx, func() (*RestorePlan, error) { return PlanRestore(ctx, s.client, time.Time{}) })
				return err
			})
		})
	}
}

func restoreMixedHistory(s *restoreSource) {
	s.insert(20, 300)
	s.snapshot()
	for i, mode := range []string{"RESTART", "TRUNCATE", "RESTART", "RESTART", "TRUNCATE"} {
		s.insert(100, 700)
		s.capture()
		s.exec("UPDATE t SET v = randomblob(400) WHERE id % 7 = ?", i)
		s.capture()
		s.exec("DELETE FROM t WHERE id % 11 = ?", i)
		s.restart(mode)
	}
	s.exec("CREATE INDEX i ON t(v)")
}

// SQLite's check runs before the file has its name, and leaves nothing.
func TestRestore_IntegrityCheckRefusesADamagedDatabase(t *testing.T) {
	s := newRestoreSource(t, 1024)
	s.insert(50, 500)
	s.exec("CREATE INDEX i ON t(id, length(v))")
	s.restart("TRUNCATE")
	s.snapshot()
	var name Pos
	for name = range s.client.snapshots {
	}
	db, err := decompressFrame(s.client.snapshots[name].data)
	if err != nil {
		t.Fatal(err)
	}
	copy(db[8*1024:], bytes.Repeat([]byte{0xee}, 1024))
	s.client.putSnapshot(name.Generation, name.Index, compressSegment(t, db))
	for check, name := range map[IntegrityCheck]string{IntegrityCheckQuick: "quick_check", IntegrityCheckFull: "integrity_check"} {
		opt := restoreQuiet()
		opt.IntegrityCheck = check
		path := filepath.Join(t.TempDir(), "odd %?#name.db")
		if _, err := RestoreLatest(context.Background(), s.client, path, opt); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		restoreOnly(t, path)
	}
	restoreWant(t, db, func(path string) error {
		_, err := RestoreLatest(context.Background(), s.client, path, restoreQuiet())
		return err
	})
}

// Progress is called by one goroutine at a time, never goes back, and ends at
// the total.
func TestRestore_ProgressReachesTheTotal(t *testing.T) {
	s := restoreFaultSource(t)
	plan, err := PlanRestore(context.Background(), s.client, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	opt := restoreQuiet()
	opt.IntegrityCheck = IntegrityCheckQuick
	var calls []RestoreProgress // unguarded: the race detector watches
	opt.Progress = func(p RestoreProgress) { calls = append(calls, p) }
	restoreWant(t, s.want(), func(path string) error {
		_, err := RestoreLatest(context.Background(), s.client, path, opt)
		return err
	})
	if len(calls) < 4 {
		t.Fatalf("%d calls", len(calls))
	}
	var stages []RestoreStage
	for i, p := range calls {
		if p.Total != plan.Size || i > 0 && p.Done < calls[i-1].Done {
			t.Errorf("call %d: %+v", i, p)
		}
		if len(stages) == 0 || stages[len(stages)-1] != p.Stage {
			stages = append(stages, p.Stage)
		}
	}
	if want := []RestoreStage{RestoreStageFetch, RestoreStageCheck, RestoreStageDone}; !slices.Equal(stages, want) {
		t.Errorf("stages %v, want %v", stages, want)
	}
	if calls[0].Done != 0 || calls[len(calls)-1].Done != plan.Size {
		t.Errorf("from %d to %d of %d", calls[0].Done, calls[len(calls)-1].Done, plan.Size)
	}
}

// The zero value of the options restores a file for its owner alone.
func TestRestore_ZeroOptions(t *testing.T) {
	s := restoreFaultSource(t)
	path := filepath.Join(t.TempDir(), "restored.db")
	var out bytes.Buffer
	opt := RestoreOptions{Logger: log.New(&out, "", 0), LogPrefix: "p: "}
	if _, err := RestoreLatest(context.Background(), s.client, path, opt); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if !strings.HasPrefix(out.String(), "p: restored "+path) || strings.Count(out.String(), "\n") != 1 {
		t.Errorf("logged %q", out.String())
	}
}

// A restore logs to LogWriter as a DB does, and that of a DB without a logger
// nowhere.
func TestRestore_DefaultLogger(t *testing.T) {
	s := restoreFaultSource(t)
	var out bytes.Buffer
	old := LogWriter
	t.Cleanup(func() { LogWriter = old })
	LogWriter = &out
	path := filepath.Join(t.TempDir(), "restored.db")
	if _, err := RestoreLatest(context.Background(), s.client, path, NewRestoreOptions()); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "litestream: restored "+path) || strings.Count(out.String(), "\n") != 1 {
		t.Errorf("logged %q", out.String())
	}
	out.Reset()
	db := NewDB(filepath.Join(t.TempDir(), "db"))
	db.Replicas = append(db.Replicas, NewReplica(db, "x", s.client))
	db.Logger = nil
	if err := db.EnsureExists(context.Background()); err != nil || out.Len() > 0 {
		t.Errorf("a DB without a logger logged %q, error %v", out.String(), err)
	}
}

// Options that mean nothing are refused, before anything is read.
func TestRestore_OptionsOutOfRange(t *testing.T) {
	s := restoreFaultSource(t)
	for want, spoil := range map[string]func(*RestoreOptions){
		"Mode is 020000000600":  func(o *RestoreOptions) { o.Mode = os.ModeDir | 0o600 },
		"Parallelism is -1":     func(o *RestoreOptions) { o.Parallelism = -1 },
		"IntegrityCheck is -1;": func(o *RestoreOptions) { o.IntegrityCheck = -1 },
		"IntegrityCheck is 3;":  func(o *RestoreOptions) { o.IntegrityCheck = 3 },
		"":                      func(o *RestoreOptions) { o.Parallelism = math.MaxInt },
	} {
		opt := restoreQuiet()
		spoil(&opt)
		c := s.client.clone()
		c.onRead = func(name string) error {
			if want != "" {
				t.Errorf("%s: %s was read", want, name)
			}
			return nil
		}
		_, err := RestoreLatest(context.Background(), c, filepath.Join(t.TempDir(), "restored.db"), opt)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	d := NewWALDownloader(s.client, filepath.Join(t.TempDir(), "p"), "0123456789abcdef", 0, 0)
	d.Parallelism = -1
	if _, _, err := d.Next(context.Background()); err == nil || !strings.Contains(err.Error(), "Parallelism is -1") {
		t.Error(err)
	}
}
