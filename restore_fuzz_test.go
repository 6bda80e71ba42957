package litestream

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.com/litestream/internal/fsys"
)

// restoreModel replays WAL frames the slow and plain way: all committed pages
// in order, then the last commit's size.
type restoreModel struct {
	pages   map[uint32][]byte
	pending map[uint32][]byte
	size    uint32
}

func (m *restoreModel) frame(pgno, commit uint32, page []byte) {
	m.pending[pgno] = page
	if commit == 0 {
		return
	}
	for pgno, page := range m.pending {
		m.pages[pgno] = page
	}
	clear(m.pending)
	m.size = commit
}

// bytes returns the database, or nil if a page came from nowhere.
func (m *restoreModel) bytes() (b []byte) {
	for pgno := uint32(1); pgno <= m.size; pgno++ {
		if m.pages[pgno] == nil {
			return nil
		}
		b = append(b, m.pages[pgno]...)
	}
	return b
}

// FuzzRestoreSegment builds valid and damaged segments from the input and
// compares the restore with a plain model of it. Four bytes make a frame: page
// number, commit size, content, and what follows it.
func FuzzRestoreSegment(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 4, 7, 0})
	f.Add([]byte{1, 0, 7, 0, 2, 5, 8, 0, 4, 5, 9, 2})
	f.Add([]byte{1, 0, 7, 0, 2, 3, 8, 1, 0, 6, 9, 2, 5, 7, 1, 0, 6, 7, 1, 3, 4, 7, 1, 2, 1, 2, 3, 0})
	f.Add([]byte{1, 4, 7, 4, 1, 4, 7, 0})
	f.Add([]byte{1, 0, 7, 2, 1, 4, 7, 0})
	f.Add([]byte{14, 19, 7, 0, 1, 4, 7, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		const pageSize = 512
		c := newRestoreMemClient()
		model := restoreModel{pages: map[uint32][]byte{}, pending: map[uint32][]byte{}, size: 4}
		db := make([]byte, 4*pageSize)
		copy(db, "SQLite format 3\x00\x02\x00")
		for i := range uint32(4) {
			model.pages[i+1] = db[i*pageSize:][:pageSize]
		}
		c.putSnapshot(restoreGenA, 0, compressSegment(t, db))

		// Segments as the input says, cut at the marks that it sets.
		pos, valid := Pos{Generation: restoreGenA}, true
		var cursor walCursor
		var seg []byte
		begin := func() {
			var h [WALHeaderSize]byte
			binary.BigEndian.PutUint32(h[:], walMagic)
			binary.BigEndian.PutUint32(h[4:], walVersion)
			binary.BigEndian.PutUint32(h[8:], pageSize)
			binary.BigEndian.PutUint32(h[16:], uint32(pos.Index))
			s1, s2 := checksumLE(0, 0, h[:WALHeaderChecksumOffset])
			binary.BigEndian.PutUint32(h[24:], s1)
			binary.BigEndian.PutUint32(h[28:], s2)
			header, err := parseWALHeader(h[:])
			if err != nil {
				t.Fatal(err)
			}
			cursor, seg = startWAL(header), h[:]
		}
		cut := func() {
			valid = valid && len(model.pending) == 0
			if len(seg) > 0 {
				c.putSegment(pos, compressSegment(t, seg))
			}
			pos.Offset, seg = cursor.offset, nil
		}
		begin()
		for ; len(data) >= 4; data = data[4:] {
			pgno, commit, flags := uint32(data[0]%16)+1, uint32(data[1]%20), data[3]
			page := bytes.Repeat(data[2:3], pageSize)
			seg = restoreAppendFrame(seg, &cursor, pgno, commit, page)
			model.frame(pgno, commit, page)
			if flags&4 != 0 {
				seg[len(seg)-int(data[2])-1] ^= 1
				valid = false
			}
			if flags&1 != 0 {
				cut()
			}
			if flags&2 != 0 {
				cut()
				pos.Index, pos.Offset = pos.Index+1, 0
				begin()
			}
		}
		cut()

		plan, err := PlanRestore(t.Context(), c, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		file, err := fsys.OS.OpenFile(filepath.Join(t.TempDir(), "x"), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		b := &restoreBuild{
			restorer: newRestorer(c, "x", restoreQuiet()),
			plan:     plan,
			fetcher:  newFetcher(c, 2, nil),
			file:     &pageFile{f: file, base: "snapshot"},
			scratch:  file.Name(),
		}
		_, err = b.fill(context.Background())
		want := model.bytes()
		if valid = valid && want != nil; valid != (err == nil) {
			t.Fatalf("restore: %v; replica is valid: %t", err, valid)
		}
		if err != nil {
			return
		}
		got, err := os.ReadFile(file.Name())
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("restored %d bytes, want %d: %v", len(got), len(want), err)
		}
	})
}
