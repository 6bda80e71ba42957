package litestream

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// rewriteWAL writes the frames of the WAL src to path with a WALWriter.
func rewriteWAL(t testing.TB, path string, src []byte) {
	t.Helper()
	h := mustParseWALHeader(t, src)
	w := NewWALWriter(path, 0o600, h.pageSize)
	w.Salt0, w.Salt1 = h.salt1, h.salt2
	if err := w.Open(); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteHeader(); err != nil {
		t.Fatal(err)
	}
	for b := src[WALHeaderSize:]; len(b) > 0; b = b[h.frameSize():] {
		pgno, commit := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
		if err := w.WriteFrame(pgno, commit, b[WALFrameHeaderSize:h.frameSize()]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// recoverWAL lets SQLite recover wal beside the database file base, and
// returns the number of rows. It fails the test if the database is damaged.
func recoverWAL(t testing.TB, base, wal []byte) int {
	t.Helper()
	path := filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(path, base, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+"-wal", wal, 0o600); err != nil {
		t.Fatal(err)
	}
	s := openWALSubject(t, path, mustParseWALHeader(t, wal).pageSize)
	var result string
	if err := s.db.QueryRow("PRAGMA integrity_check").Scan(&result); err != nil || result != "ok" {
		t.Fatalf("integrity check: %q, %v", result, err)
	}
	n := s.int("SELECT count(*) FROM t")
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
	return n
}

// twentyRows returns a database file of one row and the WAL SQLite wrote over
// it, which adds twenty in as many transactions.
func twentyRows(t testing.TB, pageSize int) (base, wal []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	s := openWALSubject(t, path, pageSize)
	s.exec("CREATE TABLE t (x)")
	s.exec("INSERT INTO t VALUES (0)")
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
	base, err := os.ReadFile(path) // SQLite has it closed
	if err != nil {
		t.Fatal(err)
	}
	s = openWALSubject(t, path, pageSize)
	for i := range 20 {
		s.exec("INSERT INTO t VALUES (randomblob(?))", i*200)
	}
	return base, s.wal()
}

func TestWALWriter_EqualsWhatSQLiteWrote(t *testing.T) {
	for _, pageSize := range realPageSizes {
		t.Run(fmt.Sprint(pageSize), func(t *testing.T) {
			base, wal := twentyRows(t, pageSize)
			path := filepath.Join(t.TempDir(), "wal")
			rewriteWAL(t, path, wal)
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, wal) {
				t.Fatalf("%d bytes differ from SQLite's %d; headers\n%x\n%x", len(got), len(wal), got[:32], wal[:32])
			}
			if n := recoverWAL(t, base, got); n != 21 {
				t.Fatalf("SQLite recovered %d rows, want 21", n)
			}
		})
	}
}

// SQLite is the judge of the checksums: it takes either byte order, and drops
// what does not fit.
func TestWALWriter_SQLiteRecoversBothByteOrders(t *testing.T) {
	base, src := twentyRows(t, 1024)
	n := WALFrameHeaderSize + 1024
	for _, bigEndian := range []bool{false, true} {
		h := newWALHeader(1024, 3, 4, bigEndian)
		c := startWAL(h)
		wal := bytes.Clone(h.raw[:])
		for b := src[WALHeaderSize:]; len(b) > 0; b = b[n:] {
			f := walFrame{pgno: binary.BigEndian.Uint32(b), commit: binary.BigEndian.Uint32(b[4:])}
			wal = c.appendFrame(wal, f, b[WALFrameHeaderSize:n])
		}
		if s := scanWAL(t, wal); s.commit != c {
			t.Fatalf("big-endian %t: the scan ends at %d, the writer at %d", bigEndian, s.commit.offset, c.offset)
		}
		if rows := recoverWAL(t, base, wal); rows != 21 {
			t.Fatalf("big-endian %t: SQLite recovered %d rows, want 21", bigEndian, rows)
		}
		wal[WALHeaderSize+30] ^= 1
		if rows := recoverWAL(t, base, wal); rows != 1 {
			t.Fatalf("big-endian %t: SQLite recovered %d rows of a corrupt WAL, want 1", bigEndian, rows)
		}
	}
}

func TestWALWriter_OutputReadsBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "wal")
	src := buildWAL(512, nativeBigEndian, 1, -2, 3, -1)
	if err := os.WriteFile(path, make([]byte, 10_000), 0o600); err != nil {
		t.Fatal(err)
	}
	rewriteWAL(t, path, src) // replaces the longer file
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, _, _, _, frame, err := ReadWALFields(bytes.NewReader(b), 512); err != nil || !bytes.Equal(frame, src[len(src)-536:]) {
		t.Fatalf("read back: %v", err)
	}
}

func TestWALWriter_FileMode(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no permission bits")
	}
	path := filepath.Join(t.TempDir(), "wal")
	w := NewWALWriter(path, 0o400, 512)
	if err := w.Open(); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if fi, err := os.Stat(path); err != nil {
		t.Fatal(err)
	} else if fi.Mode().Perm() != 0o400 {
		t.Fatalf("mode %v, want 0400", fi.Mode())
	}
}

func TestWALWriter_MisuseIsAnError(t *testing.T) {
	dir := t.TempDir()
	want := func(what string, err error, text string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want an error with %q", what, err, text)
		}
	}
	for _, pageSize := range []int{-1, 0, 256, 1000, 131072} {
		w := NewWALWriter(filepath.Join(dir, "bad"), 0o600, pageSize)
		want(fmt.Sprint("open with page size ", pageSize), w.Open(), "page size")
		if _, err := os.Stat(filepath.Join(dir, "bad")); err == nil {
			t.Errorf("page size %d: the file was created", pageSize)
		}
	}
	want("open in a missing directory", NewWALWriter(filepath.Join(dir, "no", "wal"), 0o600, 512).Open(), "open wal writer")

	w := NewWALWriter(filepath.Join(dir, "wal"), 0o600, 512)
	page := make([]byte, 512)
	want("header before open", w.WriteHeader(), "not open")
	want("frame before open", w.WriteFrame(1, 1, page), "not open")
	if err := w.Close(); err != nil {
		t.Errorf("close before open: %v", err)
	}
	if err := w.Open(); err != nil {
		t.Fatal(err)
	}
	want("second open", w.Open(), "already open")
	want("frame before header", w.WriteFrame(1, 1, page), "no header")
	if err := w.WriteHeader(); err != nil {
		t.Fatal(err)
	}
	want("second header", w.WriteHeader(), "already written")
	want("page 0", w.WriteFrame(0, 1, page), "page number 0")
	want("short page", w.WriteFrame(1, 1, page[1:]), "511 bytes")
	want("long page", w.WriteFrame(1, 1, append(page, 0)), "513 bytes")
	if err := w.WriteFrame(1, 1, page); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	want("header after close", w.WriteHeader(), "not open")
	want("frame after close", w.WriteFrame(1, 1, page), "not open")
	// None of the refused calls left a trace.
	b, err := os.ReadFile(filepath.Join(dir, "wal"))
	if err != nil {
		t.Fatal(err)
	}
	if s := scanWAL(t, b); len(b) != 32+536 || s.commit.offset != int64(len(b)) {
		t.Fatalf("%d bytes, commit at %d", len(b), s.commit.offset)
	}
}

// A failed write must not count: the frame is written again at its place.
func TestWALWriter_FailedWriteDoesNotMoveTheChain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "wal")
	w := NewWALWriter(path, 0o600, 512)
	if err := w.Open(); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.WriteHeader(); err != nil {
		t.Fatal(err)
	}
	good := w.f
	readOnly, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	w.f = readOnly
	if err := w.WriteFrame(1, 1, make([]byte, 512)); err == nil {
		t.Fatal("write to a read-only file: no error")
	}
	w.f = good
	for range 2 {
		if err := w.WriteFrame(1, 1, make([]byte, 512)); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if s := scanWAL(t, b); s.commit.frames() != 2 || s.commit.offset != int64(len(b)) {
		t.Fatalf("%d frames in %d bytes, want 2", s.commit.frames(), len(b))
	}
}
