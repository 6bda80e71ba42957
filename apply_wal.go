package litestream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"example.com/litestream/internal/fsys"
)

// ApplyWAL copies the pages of a WAL file, as [WALDownloader] writes it, into a
// database and then removes the WAL file. The result is what SQLite's own
// checkpoint makes. Every frame is verified before the first page is written;
// a file that does not end at a commit is a *ChecksumError.
//
// No process may have the database open, this one included: ApplyWAL opens and
// closes the file without SQLite's locks, and on Unix closing it drops those
// that a connection of this process holds. If a -wal, -shm or -journal stands
// beside it the error matches fs.ErrExist. After an error or a crash, the same
// call can be made again.
func ApplyWAL(ctx context.Context, dbPath, walPath string) error {
	if err := applyWAL(ctx, fsys.OS, dbPath, walPath); err != nil {
		return fmt.Errorf("apply wal %s to %s: %w", walPath, dbPath, err)
	}
	return nil
}

func applyWAL(ctx context.Context, fsy fsys.FS, dbPath, walPath string) error {
	if err := refuseExisting(fsy, dbPath, "-wal", "-shm", "-journal"); err != nil {
		return err
	}
	if err := applyWALFile(ctx, fsy, dbPath, walPath); err != nil {
		return err
	}
	return fsy.Remove(walPath)
}

func applyWALFile(ctx context.Context, fsy fsys.FS, dbPath, walPath string) (err error) {
	wal, err := fsy.OpenFile(walPath, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, wal.Close()) }()
	m := newWALFileImage(wal, walFileInput)
	defer func() { err = errors.Join(err, m.release()) }()
	if err := m.scan(ctx); err != nil {
		return err
	}

	// A power loss must not leave a part of the pages and not the WAL. Nor may an
	// earlier one, which the last call removed, come back behind them.
	if err := syncFile(fsy, walPath); err != nil && !errors.Is(err, fs.ErrPermission) { // a read-only one was there before
		return err
	}
	if err := fsy.SyncDir(filepath.Dir(walPath)); err != nil {
		return err
	}
	db, err := fsy.OpenFile(dbPath, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	hdr, err := readDatabaseHeader(db)
	if err != nil {
		return fmt.Errorf("read database header: %w", err)
	}
	info, err := db.Stat()
	if err != nil {
		return err
	}
	// A crashed call may have left half a page at the end: the wal has the rest.
	pageSize := hdr.pageSize
	if pageSize != m.cursor.header.pageSize {
		return fmt.Errorf("database has pages of %d bytes, wal of %d", pageSize, m.cursor.header.pageSize)
	}
	p := &pageFile{f: db, base: dbPath, pageSize: pageSize, snapshotPages: uint32(min(info.Size()/int64(pageSize), maxPageNumber))}
	if err := p.applyIndex(ctx, m); err != nil {
		return err
	}
	if err := p.finish(); err != nil {
		return err
	}
	return db.Sync()
}

// scan verifies a whole WAL file, and leaves its bytes there.
func (m *walImage) scan(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.makeRoom(); err != nil {
			return err
		}
		n, err := readFull(m.file, m.window[len(m.window):cap(m.window)])
		m.window = m.window[:len(m.window)+n]
		if verr := m.verify(); verr != nil {
			return &ChecksumError{Path: m.name, Pos: Pos{Offset: m.cursor.offset}, Err: verr}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if m.end() != m.commit || m.commit == 0 {
		return &ChecksumError{Path: m.name, Pos: Pos{Offset: m.commit},
			Err: fmt.Errorf("%d bytes behind the last commit", m.end()-m.commit)}
	}
	m.finish()
	return nil
}
