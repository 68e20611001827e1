package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/pkg/sftp"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
)

// copyInputs are the inputs of a copy besides its source, which is an asset and not JSON.
type copyInputs struct {
	Connection connection `json:"connection"`
	RemotePath string     `json:"remotePath"`
}

// copyIfChanged copies the source, unless the state says that the same content went to the same path before.
func (o operation) copyIfChanged(state, inputs resource.PropertyMap) error {
	source := plain(inputs["source"])
	if state != nil && plain(state["source"]).DeepEquals(source) &&
		plain(state["remotePath"]).DeepEquals(plain(inputs["remotePath"])) {
		return nil
	}
	var copying copyInputs
	if err := decode(inputs, &copying); err != nil {
		return err
	}
	connected, closeAll, err := o.connect(copying.Connection)
	if err != nil {
		return err
	}
	defer closeAll()
	client, err := sftp.NewClient(connected)
	if err != nil {
		return err
	}
	defer client.Close()
	remote := remoteFiles{client}
	switch {
	case source.IsArchive():
		return remote.copyPath(source.ArchiveValue().Path, copying.RemotePath)
	case source.AssetValue().IsPath():
		return remote.copyPath(source.AssetValue().Path, copying.RemotePath)
	}
	return remote.writeText(source.AssetValue().Text, copying.RemotePath)
}

// remoteFiles writes files over SFTP as the login user, with the server's default mode.
type remoteFiles struct{ client *sftp.Client }

// stat returns nil for what does not exist.
func (r remoteFiles) stat(name string) (fs.FileInfo, error) {
	info, err := r.client.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("failed to stat remote path %s: %w", name, err)
	}
	return info, nil
}

func (r remoteFiles) writeText(text, destination string) error {
	info, err := r.stat(destination)
	if err != nil {
		return err
	}
	if info != nil && info.IsDir() {
		return fmt.Errorf(
			"remote path %s is a directory; when using a text asset, remotePath must be a file path", destination)
	}
	return r.write(strings.NewReader(text), destination)
}

// copyPath copies a file to a path or into an existing directory; of a directory, the content if the path ends with a
// slash, and else the directory itself.
func (r remoteFiles) copyPath(source, destination string) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		if err := r.ensureDirectory(destination); err != nil {
			return err
		}
		if !strings.HasSuffix(source, "/") {
			destination = path.Join(destination, filepath.Base(source))
		}
		return r.copyDirectory(source, destination)
	}
	existing, err := r.stat(destination)
	if err != nil {
		return err
	}
	if existing != nil && existing.IsDir() {
		destination = path.Join(destination, filepath.Base(source))
	}
	return r.copyFile(source, destination)
}

func (r remoteFiles) copyDirectory(source, destination string) error {
	return filepath.WalkDir(source, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(source, name)
		if err != nil {
			return err
		}
		to := path.Join(destination, filepath.ToSlash(relative))
		if entry.IsDir() {
			return r.ensureDirectory(to)
		}
		return r.copyFile(name, to)
	})
}

func (r remoteFiles) ensureDirectory(name string) error {
	info, err := r.stat(name)
	switch {
	case err != nil:
		return err
	case info != nil && !info.IsDir():
		return fmt.Errorf("remote path %s exists but is not a directory", name)
	case info == nil:
		if err := r.client.MkdirAll(name); err != nil {
			return fmt.Errorf("failed to create remote directory %s: %w", name, err)
		}
	}
	return nil
}

func (r remoteFiles) copyFile(source, destination string) error {
	local, err := os.Open(source)
	if err != nil {
		return err
	}
	defer local.Close()
	return r.write(local, destination)
}

func (r remoteFiles) write(content io.Reader, destination string) error {
	remote, err := r.client.Create(destination)
	if err != nil {
		return fmt.Errorf("failed to create remote file %s: %w", destination, err)
	}
	if _, err := io.Copy(remote, content); err != nil {
		remote.Close()
		return fmt.Errorf("failed to copy to remote path %s: %w", destination, err)
	}
	return remote.Close()
}
