// Package atomicfile replaces files so that a reader sees the old content, the
// new content or none, never a part, whatever happens in between. Only this
// package renames files.
package atomicfile

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"example.com/litestream/internal/fsys"
)

// TempExt ends the name of every unfinished file. What a crash leaves under
// such a name is rubbish that [Sweep] removes.
const TempExt = ".tmp"

// Options say how a file is written.
type Options struct {
	Mode     fs.FileMode // permissions, before umask
	Uid, Gid int         // owner to set; -1 leaves it
	Durable  bool        // sync the file, then its directory, before returning
}

// Write replaces name by what fill writes. If it fails, nothing else is left
// behind and name is as it was, unless only the last step failed, syncing the
// directory: then name is complete but may not survive a power loss.
func Write(fsy fsys.FS, name string, opt Options, fill func(fsys.File) error) error {
	return write(fsy, name, opt, fill, fsy.Rename)
}

// Create is like [Write], but fails with an error that matches fs.ErrExist if
// name exists. Of concurrent calls one wins. If it fails, nothing is left behind
// whatever the step.
func Create(fsy fsys.FS, name string, opt Options, fill func(fsys.File) error) error {
	published := false
	err := write(fsy, name, opt, fill, func(tmp, name string) error {
		err := renameNew(fsy, tmp, name)
		published = err == nil
		return err
	})
	if err != nil && published {
		err = errors.Join(err, remove(fsy, name))
	}
	return err
}

// WriteBytes replaces name by b.
func WriteBytes(fsy fsys.FS, name string, opt Options, b []byte) error {
	return Write(fsy, name, opt, func(f fsys.File) error {
		_, err := f.Write(b)
		return err
	})
}

// processID tells the unfinished files of this process from those of all
// others. Numbers of processes do not: in a container each run has the same.
var processID = func() string {
	var b [8]byte
	rand.Read(b[:]) // never fails: see crypto/rand
	return hex.EncodeToString(b[:])
}()

var tempSeq atomic.Uint64

// tempName returns a name beside name that no other call in any process uses.
func tempName(name string) string {
	return fmt.Sprintf("%s.%s-%d%s", name, processID, tempSeq.Add(1), TempExt)
}

func write(fsy fsys.FS, name string, opt Options, fill func(fsys.File) error, publish func(tmp, name string) error) (err error) {
	tmp := tempName(name)
	f, err := fsy.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_RDWR, opt.Mode)
	if err != nil {
		return err
	}
	published := false
	defer func() {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		if !published {
			err = errors.Join(err, remove(fsy, tmp))
		}
	}()
	if err := fill(f); err != nil {
		return err
	}
	if err := chown(fsy, tmp, opt); err != nil {
		return err
	}
	if opt.Durable {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	err = f.Close()
	f = nil
	if err != nil {
		return err
	}
	if err := publish(tmp, name); err != nil {
		return err
	}
	published = true
	if opt.Durable {
		return fsy.SyncDir(filepath.Dir(name))
	}
	return nil
}

// renameNew renames tmp to name unless name exists. A hard link is the
// portable call that refuses to replace. Where the file system has none, an
// empty placeholder reserves the name: others may see it for a moment, and a
// crash in that moment leaves it.
func renameNew(fsy fsys.FS, tmp, name string) error {
	err := fsy.Link(tmp, name)
	if err == nil {
		if err := fsy.Remove(tmp); err != nil {
			return errors.Join(err, fsy.Remove(name))
		}
		return nil
	}
	if errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := fsy.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return errors.Join(err, fsy.Remove(name))
	}
	if err := fsy.Rename(tmp, name); err != nil {
		return errors.Join(err, fsy.Remove(name))
	}
	return nil
}

// MkdirAll creates dir and its missing parents. With durable, the name of each
// directory that it created is durable when it returns, and that of the deepest
// one that existed, since whoever made it may have been killed before it was. A
// directory that could not be given its owner or made durable is removed again,
// so that a retry does not take it for finished.
func MkdirAll(fsy fsys.FS, dir string, opt Options) error {
	parent := filepath.Dir(dir)
	err := checkDir(fsy, dir)
	if err == nil && opt.Durable && parent != dir {
		return syncForeign(fsy, parent)
	}
	if !errors.Is(err, fs.ErrNotExist) || parent == dir {
		return err
	}
	if err := MkdirAll(fsy, parent, opt); err != nil {
		return err
	}
	if err := fsy.Mkdir(dir, opt.Mode); errors.Is(err, fs.ErrExist) {
		return checkDir(fsy, dir) // another call was faster, or a dangling link
	} else if err != nil {
		return err
	}
	err = chown(fsy, dir, opt)
	if err == nil && opt.Durable {
		err = fsy.SyncDir(parent)
	}
	if err != nil {
		return errors.Join(err, remove(fsy, dir))
	}
	return nil
}

// syncForeign syncs a directory in which we made nothing, if we may.
func syncForeign(fsy fsys.FS, dir string) error {
	err := fsy.SyncDir(dir)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return nil
	}
	return err
}

// checkDir returns nil if dir is a directory or a link to one.
func checkDir(fsy fsys.FS, dir string) error {
	info, err := fsy.Stat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: errors.New("is not a directory")}
	}
	return nil
}

func chown(fsy fsys.FS, name string, opt Options) error {
	if opt.Uid < 0 && opt.Gid < 0 {
		return nil
	}
	return fsy.Chown(name, opt.Uid, opt.Gid)
}

// IsTemp reports whether name is that of an unfinished file.
func IsTemp(name string) bool { return strings.HasSuffix(name, TempExt) }

// Sweep removes the unfinished files in dir, on which nobody may be working. A
// directory that does not exist has none.
func Sweep(fsy fsys.FS, dir string) error {
	return sweep(fsy, dir, func(fs.DirEntry) (bool, error) { return true, nil })
}

// SweepAbandoned removes the unfinished files in dir that other processes
// began and did not touch for idle. Those of this process stay.
func SweepAbandoned(fsy fsys.FS, dir string, idle time.Duration) error {
	return sweepAbandoned(fsy, dir, idle, func(string) bool { return true })
}

// SweepVersions is SweepAbandoned for the unfinished versions of one file,
// and for files whose names begin with theirs.
func SweepVersions(fsy fsys.FS, name string, idle time.Duration) error {
	return sweepAbandoned(fsy, filepath.Dir(name), idle, func(ent string) bool {
		id, ok := strings.CutPrefix(ent, filepath.Base(name)+".")
		return ok && isVersion(id)
	})
}

// isVersion reports whether id begins with what tempName adds to a name and a
// dot.
func isVersion(id string) bool {
	id, _, ext := strings.Cut(id, TempExt)
	process, seq, ok := strings.Cut(id, "-")
	return ext && ok && len(process) == len(processID) && strings.Trim(process, "0123456789abcdef") == "" &&
		seq != "" && strings.Trim(seq, "0123456789") == ""
}

func sweepAbandoned(fsy fsys.FS, dir string, idle time.Duration, match func(ent string) bool) error {
	return sweep(fsy, dir, func(ent fs.DirEntry) (bool, error) {
		if !match(ent.Name()) || strings.Contains(ent.Name(), "."+processID+"-") {
			return false, nil
		}
		info, err := ent.Info()
		if err != nil {
			return false, err
		}
		return time.Since(info.ModTime()) >= idle, nil
	})
}

// sweep removes the unfinished files in dir that are rubbish, all it can.
func sweep(fsy fsys.FS, dir string, rubbish func(fs.DirEntry) (bool, error)) error {
	ents, err := fsy.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	var errs []error
	for _, ent := range ents {
		if !IsTemp(ent.Name()) || ent.IsDir() {
			continue
		}
		ok, err := rubbish(ent)
		if ok {
			err = remove(fsy, filepath.Join(dir, ent.Name()))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// RemoveAll removes name and, if it is a directory, everything in it, deepest
// first. It follows no symbolic link. What does not exist is no error.
func RemoveAll(fsy fsys.FS, name string) error {
	info, err := fsy.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if !info.IsDir() {
		return remove(fsy, name)
	}
	ents, err := fsy.ReadDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, ent := range ents {
		if err := RemoveAll(fsy, filepath.Join(name, ent.Name())); err != nil {
			return err
		}
	}
	return remove(fsy, name)
}

// remove removes name. What does not exist is no error.
func remove(fsy fsys.FS, name string) error {
	if err := fsy.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
